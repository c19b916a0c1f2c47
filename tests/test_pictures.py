"""speech_llm/pictures.py: fonts for what tokens are written in; the pictures themselves are made by test_run_all.py."""
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.font_manager import fontManager

from speech_llm.pictures import draw_slots, font_families


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """installed(name, characters) installs a font that has these characters alone."""
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if "DejaVu" in font.name])

    def install(name, characters):
        font, glyphs = FontBuilder(1000), [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
        font.setupGlyphOrder(glyphs)
        font.setupCharacterMap(dict(zip(map(ord, characters), glyphs[1:])))
        font.setupGlyf({glyph: Glyph() for glyph in glyphs})
        font.setupHorizontalMetrics({glyph: (1000, 0) for glyph in glyphs})
        font.setupHorizontalHeader(ascent=800, descent=-200)
        font.setupNameTable({"familyName": name, "styleName": "Regular"})
        font.setupOS2()
        font.setupPost()
        font.save(tmp_path / f"{name}.ttf")
        fontManager.addfont(tmp_path / f"{name}.ttf")
    return install


def test_a_font_is_chosen_for_the_characters_that_it_has(installed):
    installed("Hanzi", "的一是")
    installed("Thai", "ก")
    assert font_families("Grüße") == ["DejaVu Sans"] and font_families("一 the") == ["DejaVu Sans", "Hanzi"]
    assert font_families("ก的") == ["DejaVu Sans", "Hanzi", "Thai"]
    assert font_families("ひ的")[:1] == ["DejaVu Sans"] and "Hanzi" in font_families("ひ的")


@pytest.mark.parametrize("characters", ["的", ""])
def test_a_picture_is_drawn_without_warnings(installed, tmp_path, characters, capfd):
    """Whether a font has the character or not; dollars are no formula."""
    if characters:
        installed("Hanzi", characters)
    wave = np.sin(np.arange(16000) / 10).astype(np.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw_slots(tmp_path / "picture.png", wave, ["的", "", "$x", "ing$"], [0.9, 0.0, 0.4, 0.2], "的 $a_b$")
    assert not caught and not any(capfd.readouterr()) and (tmp_path / "picture.png").stat().st_size > 5000
