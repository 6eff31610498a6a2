"""
How many defective images do I need?
====================================

*Good parts are plentiful. How many defective ones must I collect?*

Measure it: train with some of those you have, and see whether the curve is still rising. All good
images are used each time, and the smaller choices are part of the larger ones.
"""

# %%
import tempfile
import warnings

import numpy as np
from matplotlib import pyplot as plt

from defectcam import ChanceLevelWarning, DefectCAMClassifier, FewDefectsWarning
from defectcam.datasets import make_defects

train = make_defects(72, defect_rate=0.5, severity=(0.3, 1), random_state=0)
test = make_defects(40, defect_rate=0.5, severity=(0.3, 1), random_state=1)
good, defective = np.flatnonzero(~train.is_defect), np.flatnonzero(train.is_defect)

# %%
# Train with more and more of them
# --------------------------------
# With ``memory``, the frozen part of the network sees each image once, whatever it is then trained
# with.
for category in (FewDefectsWarning, ChanceLevelWarning):
    warnings.simplefilter("ignore", category)  # how few are too few is the question here
memory = tempfile.TemporaryDirectory()
numbers, reports = [4, 12, 36], []
for n in numbers:
    rows = np.concatenate([good, defective[:n]])
    clf = DefectCAMClassifier(
        image_size=128,
        max_epochs=4,
        cv=2,
        codebook_size=200,
        augmentation="none",
        memory=memory.name,
        random_state=0,
    )
    clf.fit(train.images[rows], train.types[rows])
    reports.append(clf.evaluate(test.images, test.types, test.masks))
memory.cleanup()

# %%
# The curves
# ----------
# The area under the ROC curve does not depend on a threshold; recall and overkill do. AUPRO is of
# the heatmaps: with few defects they rest on novelty, what good parts never look like, which the
# good images alone teach.
_, ax = plt.subplots()
for name, values in {
    "ROC AUC": [report.roc_auc for report in reports],
    "defect recall": [report.defect_recall for report in reports],
    "overkill": [report.overkill for report in reports],
    "AUPRO of the heatmaps": [report.pixels["pro_auc"] for report in reports],
}.items():
    ax.plot(numbers, values, "o-", label=name)
    print(f"{name:<22}", *(f"{value:.2f}" for value in values))
ax.set(xlabel="Defective images in training", xscale="log", ylim=(-0.02, 1.02))
ax.set_xticks(numbers, map(str, numbers))
ax.minorticks_off()
ax.legend()

# %%
# Twenty test images of a kind leave an uncertainty of several hundredths, so read no more than the
# trend. On your own images, repeat it with other choices: ``python benchmarks/accuracy.py
# path/to/parts --protocol few-labels`` does.
