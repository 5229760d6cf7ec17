"""UnlearnCanvas's lists: 50 painting styles, 20 objects, its prompt and its seeds (Zhang et al., NeurIPS 2024)."""

from __future__ import annotations

STYLES = (
    "Abstractionism",
    "Artist Sketch",
    "Blossom Season",
    "Bricks",
    "Byzantine",
    "Cartoon",
    "Cold Warm",
    "Color Fantasy",
    "Comic Etch",
    "Crayon",
    "Cubism",
    "Dadaism",
    "Dapple",
    "Defoliation",
    "Early Autumn",
    "Expressionism",
    "Fauvism",
    "French",
    "Glowing Sunset",
    "Gorgeous Love",
    "Greenfield",
    "Impressionism",
    "Ink Art",
    "Joy",
    "Liquid Dreams",
    "Magic Cube",
    "Meta Physics",
    "Meteor Shower",
    "Monet",
    "Mosaic",
    "Neon Lines",
    "On Fire",
    "Pastel",
    "Pencil Drawing",
    "Picasso",
    "Pop Art",
    "Red Blue Ink",
    "Rust",
    "Sketch",
    "Sponge Dabbed",
    "Structuralism",
    "Superstring",
    "Surrealism",
    "Ukiyoe",
    "Van Gogh",
    "Vibrant Flow",
    "Warm Love",
    "Warm Smear",
    "Watercolor",
    "Winter",
)
"""OPTML-Group/UnlearnCanvas@920cfd1, machine_unlearning/evaluation/constants/const.py:2, with spaces for underscores as
in its prompts."""
OBJECTS = (
    "Architectures",
    "Bears",
    "Birds",
    "Butterfly",
    "Cats",
    "Dogs",
    "Fishes",
    "Flame",
    "Flowers",
    "Frogs",
    "Horses",
    "Human",
    "Jellyfish",
    "Rabbits",
    "Sandwiches",
    "Sea",
    "Statues",
    "Towers",
    "Trees",
    "Waterfalls",
)
"""The same file, line 7."""
PHOTO_PLACE = 38
"""Output of the style classifier for the photographs that the styles were painted from (`Seed_Images`), between Rust
and Sketch: the same file, lines 10-17 (`theme_available`)."""
PROMPT = "A {} image in {} style."
"""Of an object and a style: OPTML-Group/UnlearnCanvas@920cfd1,
machine_unlearning/evaluation/sampling_unlearned_models/esd.py:81."""
PHOTO = "Photo"
"""What takes a style's place there: photographs are captioned so in training, and its scripts of EraseDiff, SalUn and
Scissorhands replace a style by it (machine_unlearning/mu_erase_diff_ediff/generate_dataset.py:28)."""
SEEDS = (188, 288, 588, 688, 888)
"""machine_unlearning/evaluation/quantitative/accuracy.py:28. Each starts the generator of each prompt's noise anew, as
in sampling_unlearned_models/uce.py:68 there; its scripts for CompVis checkpoints draw one prompt's noise after
another's."""
