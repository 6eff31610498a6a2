"""
Which threshold?
================

*A defect that reaches the customer costs me 5 times as much as a good part thrown away.*

The threshold decides between the two errors. It must be chosen on images that the model was not
trained on, and not on those that it is judged by afterwards.
"""

# %%
from defectcam import DefectCAMClassifier, ThresholdDisplay
from defectcam.datasets import make_defects

train = make_defects(80, defect_rate=0.4, severity=(0.4, 1), random_state=0)
test = make_defects(60, defect_rate=0.4, severity=(0.4, 1), random_state=1)
clf = DefectCAMClassifier(
    image_size=128, max_epochs=4, cv=2, codebook_size=200, augmentation="none", random_state=0
)
clf.fit(train.images, train.is_defect)

# %%
# What each threshold would do
# ----------------------------
# ``held_out_probability_`` is what each training image got from a network that had not seen it.
held_out = ThresholdDisplay.from_predictions(
    train.is_defect,
    clf.held_out_probability_,
    escape_cost=5,
    overkill_cost=1,
    threshold=clf.threshold_,
)
print(f"cheapest on held-out training images: {held_out.best_threshold:.3f}")

# %%
# A minimum over few images is jumpy. Where probabilities are calibrated, theory names the threshold
# without a search: reject from the probability on at which an escape is expected to cost more than
# an overkill, 1 / (1 + 5). ``threshold="cost=5:1"`` asks `fit` for it.
from_costs = 1 / (1 + 5)
print(f"from the costs alone: {from_costs:.3f}")

# %%
# Does it hold on new parts?
# --------------------------
for name, threshold in {
    "as fitted": clf.threshold_,
    "cheapest on held-out": held_out.best_threshold,
    "from the costs": from_costs,
}.items():
    clf.threshold_ = threshold
    report = clf.evaluate(test.images, test.is_defect)
    cost = 5 * len(report.missed_defects) + len(report.false_alarms)
    print(
        f"{name:<21} {threshold:.3f}: {len(report.missed_defects)} escapes, "
        f"{len(report.false_alarms)} overkills, cost {cost}"
    )

# %%
# The test images' own curve shows how much could have been saved, had one known. The threshold
# that is marked as present is the last one tried.
ThresholdDisplay.from_estimator(clf, test.images, test.is_defect, escape_cost=5, overkill_cost=1)
