"""
New defect types
================

*Next month the line will make a defect that is not in my folder. Will it be noticed?*

Two kinds of knowledge meet in the heatmap: the *evidence*, learned from the defects that were
labelled, and the *novelty*, how far a spot is from what good parts look like, learned from good
parts alone. The second needs to have seen no defect of the kind.
"""

# %%
# Train on two types, test on five
# --------------------------------
from defectcam import DefectCAMClassifier, HeatmapGridDisplay, TypeConfusionDisplay
from defectcam.datasets import make_defects

known = ["scratch", "spot"]
train = make_defects(60, defect_rate=0.4, defect_types=known, severity=(0.4, 1), random_state=0)
test = make_defects(60, defect_rate=0.5, severity=(0.4, 1), random_state=1)
clf = DefectCAMClassifier(
    target="type",
    image_size=128,
    max_epochs=4,
    cv=2,
    codebook_size=200,
    augmentation="none",
    random_state=0,
)
clf.fit(train.images, train.types)
report = clf.evaluate(test.images, test.types, test.masks)
for kind, recall in report.recall_by_type.items():
    print(f"{kind:<8} {'known' if kind in known else 'new':<6} {recall:.0%} called defective")
print(f"good            {report.overkill:.0%} called defective")

# %%
# Types that training did not know have no column. Such an image is right where it is called any
# defect.
TypeConfusionDisplay.from_estimator(clf, test.images, test.types)

# %%
# What do they look like?
# -----------------------
# A box that no known type explains is called *anomaly*. A type that resembles a known one gets that
# one's name, as any classifier would give it.
HeatmapGridDisplay.from_estimator(clf, test.images, test.types, masks=test.masks)

# %%
# What to do with them
# --------------------
# Label a few and fit again, or let `partial_fit` learn from them; `query` says which of many
# unlabelled images to label first: images near the border between good and defective or unlike all
# that is known, and different from one another.
print(test.types[clf.query(test.images, 6)])
