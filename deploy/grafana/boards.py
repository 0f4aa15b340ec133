"""The dashboards: what each panel shows and asks. `python -m deploy.grafana.build` writes them as JSON."""

from __future__ import annotations

from deploy.grafana.panels import (
    ALL,
    MODEL,
    RATE,
    Dashboard,
    Panel,
    lost,
    mean,
    or_0,
    quantile,
    quantiles,
    rate,
    ratio,
)

TRAFFIC = Dashboard(
    "madtp-traffic",
    "MADTP: traffic and latency",
    "What arrives, how it ends, and where the time goes.",
    (
        Panel(
            "Answered requests",
            "Requests answered with 200, a second.",
            "reqps",
            ((f'sum(rate(madtp_requests_total{{{ALL},outcome="ok"}}[{RATE}]))', "answered"),),
            "stat",
            6,
        ),
        Panel(
            "p99 latency",
            "From the headers' arrival to the answer.",
            "s",
            ((quantile(0.99, "madtp_request_seconds"), "p99"),),
            "stat",
            6,
        ),
        Panel(
            "Not answered in time",
            "Requests of the last hour that missed 1 s or had no answer.",
            "percentunit",
            (("max(model_task:madtp_slo_misses:ratio_rate1h)", "missed"),),
            "stat",
            6,
        ),
        Panel(
            "Turned away",
            "Share of requests answered 429 or 503 in the last five minutes.",
            "percentunit",
            (("max(model_task:madtp_shed:ratio_rate5m)", "shed"),),
            "stat",
            6,
        ),
        Panel(
            "Requests by outcome",
            "ok, invalid, shed, unavailable, deadline, cancelled, error.",
            "reqps",
            ((rate("madtp_requests_total", "outcome"), "{{outcome}}"),),
            is_stacked=True,
        ),
        Panel(
            "Answered requests by model",
            "By the model and the task that it did.",
            "reqps",
            ((rate("madtp_requests_total", "model, task", ',outcome="ok"'), MODEL),),
            is_stacked=True,
        ),
        Panel(
            "Latency",
            "Answered requests, from the headers' arrival to the answer.",
            "s",
            quantiles("madtp_request_seconds", 0.5, 0.9, 0.99, 0.999),
        ),
        Panel(
            "p99 latency by model",
            "Answered requests.",
            "s",
            ((quantile(0.99, "madtp_request_seconds", "model, task"), MODEL),),
        ),
        "By stage",
        Panel(
            "Mean time by stage",
            "The stages of an answer; their sum is its mean time inside.",
            "s",
            ((mean("madtp_stage_seconds", "stage"), "{{stage}}"),),
            is_stacked=True,
        ),
        Panel(
            "p99 by stage",
            "Of each stage alone; they do not add up.",
            "s",
            ((quantile(0.99, "madtp_stage_seconds", "stage"), "{{stage}}"),),
        ),
    ),
)

SAVINGS = Dashboard(
    "madtp-savings",
    "MADTP: what pruning saves",
    "Operations spent, needed, run and dense; tokens kept and needed.",
    (
        Panel(
            "Operations saved",
            "1 - spent / dense over the time shown.",
            "percentunit",
            ((lost("spent", of="dense"), "saved"),),
            "stat",
            8,
        ),
        Panel(
            "Lost to batch mates",
            "Share of what was spent that no request needed: the neediest decides.",
            "percentunit",
            ((lost("needed", of="spent"), "lost"),),
            "stat",
            8,
        ),
        Panel(
            "Lost to padding",
            "Share of what was really run that went into pads.",
            "percentunit",
            ((lost("spent", of="padded"), "lost"),),
            "stat",
            8,
        ),
        Panel(
            "Operations a second",
            "dense: unpruned; spent: without pads; padded: really run; needed: each its own.",
            "flops",
            ((rate("madtp_flops_total", "kind"), "{{kind}}"),),
        ),
        Panel(
            "Operations / dense",
            "What a request spends, would need, and really runs, as a share of dense.",
            "percentunit",
            tuple((ratio(kind), f"{kind} {MODEL}") for kind in ("spent", "needed", "padded")),
        ),
        Panel(
            "Operations of a request",
            "Mean, decoding included.",
            "short",
            ((mean("madtp_request_flops"), MODEL),),
        ),
        Panel(
            "Keep efficiency",
            "Tokens needed / kept of a request: 1 where nobody keeps for another.",
            "percentunit",
            ((mean("madtp_keep_efficiency"), MODEL),),
            top=1,
        ),
        Panel(
            "Token density",
            "Mean over blocks of tokens kept / dense, by branch.",
            "percentunit",
            ((mean("madtp_token_density", "model, task, branch"), "{{branch}} " + MODEL),),
            top=1,
        ),
        Panel(
            "Token density, spread",
            "Half of the requests lie below p50, one in ten above p90.",
            "percentunit",
            quantiles("madtp_token_density", 0.1, 0.5, 0.9),
            top=1,
        ),
    ),
)

CONTROL = Dashboard(
    "madtp-control",
    "MADTP: controller",
    "The target of operations, the prune temperature that holds it, and the difficulty of what arrives.",
    (
        Panel(
            "Target and what was spent",
            "Spent / dense is held at the target in the mean of many requests.",
            "percentunit",
            (
                (f"avg by (model, task) (madtp_flops_target_ratio{{{ALL}}})", f"target {MODEL}"),
                (ratio("spent"), f"spent {MODEL}"),
                (f"model_task:madtp_flops:spent_per_dense15m{{{ALL}}}", f"spent, 15 min {MODEL}"),
            ),
        ),
        Panel(
            "Prune temperature",
            "Of the last batch; 0 is dense.",
            "short",
            ((f"avg by (model, task) (madtp_prune_temperature{{{ALL}}})", MODEL),),
        ),
        Panel(
            "Difficulty",
            "Measured need of requests: share of their tokens that they needed.",
            "percentunit",
            quantiles("madtp_difficulty", 0.1, 0.5, 0.9),
            top=1,
        ),
        Panel(
            "Rank correlation of the predictor",
            "Predicted against measured; below 0.2 sorting is in vain.",
            "short",
            ((f"avg by (model, task) (madtp_difficulty_rank_correlation{{{ALL}}})", MODEL),),
            top=1,
        ),
    ),
)

SATURATION = Dashboard(
    "madtp-saturation",
    "MADTP: saturation",
    "How full the service is: queues, batches, processor, memory.",
    (
        Panel(
            "Waiting requests",
            "For a batch.",
            "short",
            ((f"sum by (model, task) (madtp_queue_depth{{{ALL}}})", MODEL),),
        ),
        Panel(
            "Waiting tokens",
            "Predicted tokens of the requests that wait.",
            "short",
            ((f"sum by (model, task) (madtp_queue_tokens{{{ALL}}})", MODEL),),
        ),
        Panel(
            "Time in the queue",
            "Waiting for a preprocessing thread and for a batch.",
            "s",
            quantiles("madtp_stage_seconds", 0.5, 0.99, more=',stage="queue"'),
        ),
        Panel(
            "Turned away, by reason",
            "overloaded (429); draining, not_ready, engine_failed (503).",
            "reqps",
            ((or_0(rate("madtp_shed_total", "reason")), "{{reason}}"),),
            is_stacked=True,
        ),
        Panel(
            "Requests in a batch",
            "Mean.",
            "short",
            ((mean("madtp_batch_size"), MODEL),),
        ),
        Panel(
            "Tokens in a batch",
            "Entering it, pads included; mean.",
            "short",
            ((mean("madtp_batch_tokens"), MODEL),),
        ),
        Panel(
            "Batches and images a second",
            "Batches answered, images decoded.",
            "ops",
            (
                (f"sum(rate(madtp_batch_size_count{{{ALL}}}[{RATE}]))", "batches"),
                (f'sum(rate(madtp_images_decoded_total{{model=~"$model"}}[{RATE}]))', "images"),
            ),
        ),
        Panel(
            "Processor",
            "Cores in use by each instance, and by the process that its models compute in.",
            "short",
            (
                (f'rate(process_cpu_seconds_total{{job="madtp"}}[{RATE}])', "{{instance}}"),
                (
                    or_0(f'rate(model_process_cpu_seconds_total{{job="madtp"}}[{RATE}])'),
                    "{{instance}} models",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Resident, and on the GPU where there is one.",
            "bytes",
            (
                ('process_resident_memory_bytes{job="madtp"}', "{{instance}}"),
                (or_0('model_process_resident_memory_bytes{job="madtp"}'), "{{instance}} models"),
                (
                    or_0('sum by (instance, model) (madtp_gpu_memory_bytes{model=~"$model"})'),
                    "GPU {{model}}",
                ),
            ),
        ),
        Panel(
            "GPU power",
            "0 where there is none.",
            "watt",
            (
                (
                    or_0('sum by (instance, model) (madtp_gpu_power_watts{model=~"$model"})'),
                    "{{instance}} {{model}}",
                ),
            ),
        ),
        Panel(
            "Open files",
            "Sockets included.",
            "short",
            (('process_open_fds{job="madtp"}', "{{instance}}"),),
        ),
        Panel(
            "Models",
            "What is served.",
            "short",
            (("madtp_model_info", "{{model}} {{task}} {{device}} {{dtype}} {{keep_mode}}"),),
        ),
    ),
)

DASHBOARDS = (TRAFFIC, SAVINGS, CONTROL, SATURATION)
