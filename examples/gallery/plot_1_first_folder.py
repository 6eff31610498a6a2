"""
My first folder
===============

*I have a folder of good parts and one of defective ones. What do I get?*

A folder with one sub-folder per class is all that is needed. Here one is written with generated
parts; use your own instead.
"""

# %%
# A folder of parts
# -----------------
import tempfile
from pathlib import Path

from PIL import Image

from defectcam import DefectCAMClassifier, HeatmapGridDisplay, LocalizationDisplay
from defectcam.datasets import make_defects

temporary = tempfile.TemporaryDirectory()
root = Path(temporary.name)
for split, n_samples, seed in (("train", 60, 0), ("test", 40, 1)):
    data = make_defects(n_samples, defect_rate=0.4, severity=(0.5, 1), random_state=seed)
    for i, (image, kind) in enumerate(zip(data.images, data.types, strict=True)):
        path = root / split / kind / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

print(*sorted(path.relative_to(root).as_posix() for path in root.glob("*/*")), sep="\n")

# %%
# Train
# -----
# The defaults suit real parts. These are small and simple, so less will do.
clf = DefectCAMClassifier(
    image_size=128, max_epochs=4, cv=2, codebook_size=200, augmentation="none", random_state=0
)
clf.fit(root / "train")

# %%
# How good is it?
# ---------------
# The report leads with what was missed.
print(clf.evaluate(root / "test"))

# %%
# Where are the defects?
# ----------------------
# The answers to look at first come first: missed defects, false alarms, then the others. The scale
# is the same in every picture: 0 is typical of good parts, 1 the limit that they stay below.
HeatmapGridDisplay.from_estimator(clf, root / "test", n_images=8)

# %%
# One image, and its numbers
# --------------------------
found = clf.localize(sorted((root / "test" / "scratch").glob("*.png"))[0])
LocalizationDisplay.from_predictions(found)
print(found)
print(found.boxes)

# %%
# Keep it
# -------
clf.save(root / "part.safetensors")
temporary.cleanup()
