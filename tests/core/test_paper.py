"""The paper's five uncompressed models, and our formulas on a case small enough for paper and pencil."""

import os
import subprocess
import sys

import pytest

from madtp_core.flops import (
    AlignmentGeometry,
    BranchTrace,
    TextGeometry,
    VisionGeometry,
    clip_text_macs,
    clip_vision_macs,
    decoder_macs,
    linear_macs,
    text_encoder_macs,
    twin_text_encoder_macs,
    vision_macs,
)
from madtp_core.paper import PaperRow, paper_rows

TOTALS = {
    "BLIP-NLVR": "132.54",
    "BLIP-Caption": "65.72",
    "BLIP-VQA": "186.12",
    "BLIP-Retrieval": "153.24",
    "CLIP ViT-L/14": "395.70",
}
PARTS = {
    "BLIP-NLVR": (111.078, 21.462, 0.001),
    "BLIP-Caption": (55.539, 9.820, 0.361),
    "BLIP-VQA": (92.107, 12.754, 52.012, 0.198, 23.402, 5.648),
    "BLIP-Retrieval": (111.078, 5.997, 12.036, 24.072, 0.001, 0.000, 0.059),
    "CLIP ViT-L/14": (382.209, 13.314, 0.177),
}


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.model)
def test_a_row_is_the_papers(row: PaperRow) -> None:
    gmacs = row.macs / 1e9
    assert f"{gmacs:.2f}" == TOTALS[row.model]
    digits = len(str(row.printed).partition(".")[2])
    assert round(gmacs, digits) == row.printed


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row.model)
def test_its_parts_add_up(row: PaperRow) -> None:
    assert tuple(round(part.macs / 1e9, 3) for part in row.parts) == PARTS[row.model]
    assert sum(part.count * part.macs_each for part in row.parts) == row.macs


# --- By hand: d = 2, a feed-forward of 8, two blocks; class token counted in where it says tokens

VISION = VisionGeometry(2, 8, 2, 2, 4, 4)  # 4 patches of 2 x 2 pixels
TEXT = TextGeometry(2, 8, 2, memory_width=2, vocabulary=7)
SEEN = BranchTrace(4, (4, 3), (2, 3), (2, 3))  # 4 -> 2 and the merged one; then nothing
SAID = BranchTrace(3, (3, 2), (1, 2), (1, 2))
# block 1: 5 tokens in, 4 behind the pruning; block 2: 4 tokens; attention 4nd² + 2n²d, feed-forward 2md·8
SEEN_BLOCKS = (80 + 100 + 128 + 5 * 9 * 2) + (64 + 64 + 128 + 5 * 8 * 2)
# 4 tokens in, 3 behind the pruning; then 3
SAID_BLOCKS = (64 + 64 + 96 + 5 * 7 * 2) + (48 + 36 + 96 + 5 * 6 * 2)
MADTP = AlignmentGeometry(3, 2)
SEEN_SCORED = (4 * 2 * 3 + 4 * 3 + 2 * 2) + (3 * 2 * 3 + 3 * 3)


def test_a_pruned_image_by_hand() -> None:
    patches, final_norm = 4 * 12 * 2, 5 * 4 * 2
    assert vision_macs(VISION, SEEN) == patches + SEEN_BLOCKS + final_norm == 870
    assert vision_macs(VISION, SEEN, MADTP) == 870 + SEEN_SCORED == 937


def test_a_pruned_clip_image_by_hand() -> None:
    first_norm, last_norm, projection = 5 * 5 * 2, 5 * 2, 2 * 3  # the last two of the class token alone
    expected = 4 * 12 * 2 + first_norm + SEEN_BLOCKS + last_norm + projection
    assert clip_vision_macs(VISION, SEEN, 3) == expected
    mapped = AlignmentGeometry(3, 2, vision_mapped=True)
    extra = SEEN_SCORED + (4 + 3) * 2 * 2
    assert clip_vision_macs(VISION, SEEN, 3, mapped) == expected + extra


def test_a_pruned_clip_text_by_hand() -> None:
    assert clip_text_macs(TEXT, SAID, 3) == SAID_BLOCKS + 5 * 2 + 2 * 3


def test_a_pruned_text_by_hand() -> None:
    alone = 5 * 4 * 2 + SAID_BLOCKS
    assert text_encoder_macs(TEXT, SAID, None) == alone
    cross = 2 * (3 * 4 + 3 * 4 + 2 * 3 * 5 * 2 + 5 * 3 * 2)  # 3 tokens read 5, in both blocks
    assert text_encoder_macs(TEXT, SAID, 5) == alone + cross + 2 * 5 * 2 * 2 * 2


def test_a_pruned_text_that_reads_two_images_by_hand() -> None:
    alone = 5 * 4 * 2 + SAID_BLOCKS
    cross = 2 * (2 * (3 * 4 + 3 * 4) + 2 * 3 * (4 + 3) * 2 + 5 * 3 * 2)
    keys_and_values, merge_layer = 2 * (4 + 3) * 2 * 2 * 2, 3 * 4 * 2
    assert twin_text_encoder_macs(TEXT, SAID, (4, 3), 2) == alone + cross + keys_and_values
    assert twin_text_encoder_macs(TEXT, SAID, (4, 3), 1) == alone + cross + keys_and_values + merge_layer
    scored = twin_text_encoder_macs(TEXT, SAID, (4, 3), 1, MADTP) - 1034
    assert scored == (3 * 2 * 3 + 3 * 3 + 2 * 2) + (2 * 2 * 3 + 2 * 3)


def test_a_decoder_may_read_a_memory_of_another_width() -> None:
    own, wider = decoder_macs(TEXT, [(3, 3)], 5), decoder_macs(TEXT, [(3, 3)], 5, memory_width=6)
    assert wider - own == 2 * 5 * (6 - 2) * 2 * 2


def test_linear_layers_one_after_another() -> None:
    assert linear_macs(3, 5, 2, rows=4) == 4 * (15 + 10)
    assert linear_macs(3, 5) == 15


def test_a_reader_who_has_gone_is_no_error():
    """As of `madtp flops | head`."""
    code = "import sys; from madtp_core.cli import main; sys.exit(main(['flops']))"
    reading, writing = os.pipe()
    os.close(reading)
    told = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (told.returncode, told.stderr) == (1, "")
