"""Settings: where they come from, what is refused, and that the docs list them."""

import re
from pathlib import Path

import pytest

from service.cli import main
from service.settings import ModelSource, Settings, SettingsError, load_settings, parse_models

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_order_is_flag_environment_file_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".env"
    file.write_text("MADTP_PORT=1\nMADTP_MAX_QUEUE=1\nMADTP_THREADS=1\n")
    monkeypatch.setenv("MADTP_PORT", "2")
    monkeypatch.setenv("MADTP_MAX_QUEUE", "2")
    settings = load_settings(file, port="3")
    found = (settings.port, settings.max_queue, settings.threads, settings.max_batch_size)
    assert found == (3, 2, 1, 32)


@pytest.mark.parametrize("name", ["MADTP_MAX_QUEU", "madtp_max_queu"])
def test_an_unknown_name_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=r"MADTP_MAX_QUEU \(did you mean MADTP_MAX_QUEUE\?\); known: .*"):
        load_settings(None)


def test_an_unknown_name_in_the_file_is_refused_but_not_those_of_others(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("OTHER=1\nMADTP_NOTHING=1\n")
    with pytest.raises(SettingsError, match="MADTP_NOTHING"):
        load_settings(file)
    file.write_text("OTHER=1\nMADTP_PORT=8001\n")
    assert load_settings(file).port == 8001


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(SettingsError, match="MADTP_NOTHING"):
        load_settings(None, nothing=1)


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADTP_THREADS", "")
    assert load_settings(None).threads is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("flops_target", "0"),
        ("flops_target", "1.5"),
        ("keep_mode", "all"),
        ("dtype", "int8"),
        ("max_batch_size", "0"),
        ("models", ""),
        ("models", "just-a-path"),
        ("models", "a=x,a=y"),
        ("models", "bad name=x"),
    ],
)
def test_a_bad_value_is_refused_with_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"MADTP_{name.upper()}"):
        load_settings(None, **{name: value})


def test_models_are_names_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MADTP_MODELS", "demo=checkpoints/demo, base=Some/hub-id")
    wanted = (ModelSource("demo", "checkpoints/demo"), ModelSource("base", "Some/hub-id"))
    assert load_settings(None).models == wanted == parse_models("demo=checkpoints/demo,base=Some/hub-id,")


def _folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    return tmp_path


def test_models_may_be_a_folder_of_checkpoints(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "b", "a")
    (folder / "no checkpoint").mkdir()
    assert parse_models(str(folder)) == tuple(ModelSource(name, str(folder / name)) for name in "ab")


def test_by_default_all_demo_checkpoints_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    _folder(tmp_path / "checkpoints", "one", "two")
    assert [model.name for model in load_settings(None).models] == ["one", "two"]


def test_models_may_be_a_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("demo: checkpoints/demo\nbase: Some/hub-id  # a comment\n")
    wanted = (ModelSource("demo", "checkpoints/demo"), ModelSource("base", "Some/hub-id"))
    assert load_settings(None, models=str(file)).models == wanted


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: 1\n", "a: {\n", "", "a b: c\n"])
def test_a_yaml_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match="MADTP_MODELS"):
        load_settings(None, models=str(file))


def test_keys_are_shown_nowhere() -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(None, api_keys="topsecret", monitoring_key="topsecret")
    assert "at least 16 characters" in str(refused.value)
    assert "topsecret" not in str(refused.value)
    settings = load_settings(None, api_keys="topsecret-0123456789", monitoring_key="topsecret-0123456789")
    assert "topsecret" not in repr(settings)


def test_lists_are_separated_by_commas() -> None:
    settings = load_settings(None, cors_origins="https://a.example, https://b.example,", image_url_hosts="")
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.image_url_hosts == ()


def test_the_command_line_tells_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--port", "many"])
    assert ended.value.code == 2
    assert "MADTP_PORT" in capsys.readouterr().err


def test_the_command_line_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert [name for name in Settings.model_fields if f"--{name.replace('_', '-')}" not in shown] == []


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case ():
            return ""
        case _:
            return str(value)


def test_the_docs_list_every_setting_with_its_default() -> None:
    listed = re.findall(r"^\| `MADTP_(\w+)` \|([^|]*)\|", DOCS.read_text("utf-8"), re.MULTILINE)
    wanted = [(name.upper(), _shown(field.default)) for name, field in Settings.model_fields.items()]
    assert [(name, default.strip(" `")) for name, default in listed] == wanted
