"""
Compare backbones
=================

*There are hundreds of pre-trained networks. Does it matter which one I take?*

Any backbone of torchvision or timm can be named. Compare them as any other parameter, by
cross-validation on your own images. Here are the two whose ImageNet weights come as packages, and
one of them with random weights, to show what the pre-training is worth.
"""

# %%
import time
import warnings

from matplotlib import pyplot as plt

from defectcam import ChanceLevelWarning, DefectCAMClassifier, PROCurveDisplay
from defectcam.datasets import make_defects

train = make_defects(48, defect_rate=0.4, severity=(0.3, 1), random_state=0)
test = make_defects(48, defect_rate=0.4, severity=(0.3, 1), random_state=1)
candidates = {
    "efficientnet_lite0": {"backbone": "efficientnet_lite0"},
    "efficientnet_lite1": {"backbone": "efficientnet_lite1"},
    "lite0, random weights": {"backbone": "efficientnet_lite0", "weights": None},
}

# %%
# Each with the same data and options
# -----------------------------------
warnings.simplefilter("ignore", ChanceLevelWarning)  # random weights deserve it
_, ax = plt.subplots(layout="constrained")
for name, parameters in candidates.items():
    clf = DefectCAMClassifier(
        **parameters,
        image_size=128,
        max_epochs=4,
        cv=2,
        codebook_size=200,
        augmentation="none",
        random_state=0,
    )
    started = time.perf_counter()
    clf.fit(train.images, train.is_defect)
    seconds = time.perf_counter() - started
    report = clf.evaluate(test.images, test.is_defect)
    print(
        f"{name:<22} ROC AUC {report.roc_auc:.2f}, defect recall {report.defect_recall:.2f}, "
        f"overkill {report.overkill:.2f}, {clf.info()['n_parameters'] / 1e6:.1f} million "
        f"parameters, fitted in {seconds:.0f} s"
    )
    PROCurveDisplay.from_estimator(clf, test.images, test.is_defect, test.masks, name=name, ax=ax)

# %%
# Read it with care: with a few dozen test images, differences of some hundredths are chance. With
# more images, `GridSearchCV` over ``{"backbone": [...]}`` does the same with cross-validation, and
# with ``memory`` each backbone's frozen part sees each image only once.
#
# Weights that are not on the machine are downloaded by torchvision or timm when `fit` first needs
# them; without a network, the error says which file to put where. Prediction downloads nothing.
