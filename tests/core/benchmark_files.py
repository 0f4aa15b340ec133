"""Miniatures of benchmarks in their true formats, as the originals' files have them, pictures included."""

import json

import numpy as np
from PIL import Image

# BLIP's list for VQA v2: a question of COCO and one of Visual Genome, whose answer is one text.
BLIP_VQA = [
    {"question_id": 262148001, "question": "What are the people doing?", "answer": ["spectating", "watching",
     "watching"], "image": "val2014/COCO_val2014_000000262148.jpg", "dataset": "vqa"},
    {"question_id": 524286000, "question": 'Is the "cat" asleep?', "answer": ["yes"] * 10,
     "image": "val2014/COCO_val2014_000000524286.jpg", "dataset": "vqa"},
]  # fmt: skip
BLIP_VG = [
    {"question_id": 986769, "question": "How many people are there?", "answer": "two", "image": "image/1.jpg",
     "dataset": "vg"},
]  # fmt: skip
BLIP_VQA_TEST = [
    {"question_id": 262144000, "question": "Is the ball flying towards the batter?",
     "image": "test2015/COCO_test2015_000000262144.jpg", "dataset": "vqa"},
]  # fmt: skip

_ABOUT = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
    "license": {"name": "Creative Commons Attribution 4.0", "url": ""},
    "data_type": "mscoco",
}
OFFICIAL_QUESTIONS = {
    **_ABOUT,
    "task_type": "Open-Ended",
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 262148, "question": "How many dogs?", "question_id": 262148002},
    ],
}


def _annotation(question_id, question_type, answer_type, answers):
    return {
        "question_type": question_type, "multiple_choice_answer": answers[0], "image_id": 262148,
        "answer_type": answer_type, "question_id": question_id, "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": number}
            for number, answer in enumerate(answers, start=1)],
    }  # fmt: skip


OFFICIAL_ANNOTATIONS = {
    **_ABOUT,
    "data_subtype": "val2014",
    "annotations": [
        _annotation(262148002, "how many", "number", ["2"] * 7 + ["3"] * 2 + [""]),
        _annotation(262148000, "none of the above", "other", ["down"] * 9 + ["at table"]),
    ],
}

KARPATHY_TRAIN = [
    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "A woman (in a net) cutting a cake. ",
     "image_id": "coco_522418"},
    {"image": "train2014/COCO_train2014_000000184613.jpg", "caption": "A child holding an umbrella.",
     "image_id": "coco_184613"},
    {"image": "val2014/COCO_val2014_000000522418.jpg", "caption": "Someone is cutting a cake",
     "image_id": "coco_522418"},
]  # fmt: skip
KARPATHY_TEST = [
    {"image": "val2014/COCO_val2014_000000391895.jpg",
     "caption": ["A man with a red helmet.", "A dirt bike: parked!", "A man rides", "One man", "A view "]},
    {"image": "val2014/COCO_val2014_000000060623.jpg",
     "caption": ["A girl eats", "One man", "A girl, at a table", "Dessert", "A spoon"]},
]  # fmt: skip
FLICKR_TEST = [
    {"image": "flickr30k-images/1007129816.jpg", "caption": ["A man with a hat", "A man", "He", "She", "It"]},
    {"image": "flickr30k-images/1009434119.jpg", "caption": ["A dog", "A black dog", "Runs", "Fast", "Dog"]},
]
COCO_CAPTIONS = {
    **_ABOUT,
    "images": [
        {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 360, "width": 640},
        {"id": 37777, "file_name": "000000037777.jpg", "height": 230, "width": 352},  # as of 2017
    ],
    "annotations": [
        {"id": 770337, "image_id": 391895, "caption": "A man with a red helmet."},
        {"id": 7, "image_id": 37777, "caption": "A kitchen\n"},
        {"id": 771687, "image_id": 391895, "caption": "A dirt bike"},
    ],
}
NLVR = [
    {"sentence": "The left image contains twice the number of dogs.", "label": "True",
     "images": ["dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png"]},
    {"sentence": "There is one (1) dog", "label": "False",
     "images": ["images/train/11/train-10171-0-img0.png", "images/train/11/train-10171-0-img1.png"]},
]  # fmt: skip


def write_json(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def write_pictures(root, *names):
    """Small pictures of random pixels, each of another size."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 16 + number, 3), np.uint8)
        Image.fromarray(pixels).save(root / name)


def pictures_of(*contents):
    """Names of the pictures of BLIP's lists."""
    names = {}
    for content in contents:
        for entry in content:
            names |= dict.fromkeys(entry["images"] if "images" in entry else [entry["image"]])
    return list(names)
