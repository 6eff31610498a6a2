"""
From draft boxes to a detector
==============================

*We want a supervised detector in the end. Can the boxes be drafts, for somebody to correct?*

A detector learns from boxes, and drawing them takes time. Here one of torchvision's detectors, made
small, is trained twice on the same images: with the true boxes, and with the boxes that
`localize` found, as they are. The less the two differ, the less there is to correct.
"""

# %%
# Drafts
# ------
import warnings

import torch
from matplotlib import pyplot as plt
from sklearn.exceptions import UndefinedMetricWarning
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from defectcam import DefectCAMClassifier
from defectcam.backbones import create_backbone
from defectcam.datasets import make_defects
from defectcam.display import overlay
from defectcam.metrics import box_precision_recall_f1, mask_boxes

options = {"kind": "metal", "defect_types": ["spot", "stain", "missing"], "severity": (0.5, 1)}
train = make_defects(56, defect_rate=0.5, random_state=0, **options)
test = make_defects(40, defect_rate=0.5, random_state=1, **options)
clf = DefectCAMClassifier(
    image_size=128, max_epochs=4, cv=2, codebook_size=200, augmentation="none", random_state=0
)
clf.fit(train.images, train.is_defect)

# %%
# That an image is defective is known from its label, whatever the classifier thinks of it, so the
# decision threshold is set to zero. Good images need no boxes.
defective = train.images[train.is_defect]
drafts = [found.with_threshold(decision_threshold=0.0).boxes for found in clf.localize(defective)]
drawn = [mask_boxes(mask) for mask in train.masks[train.is_defect]]
fit = box_precision_recall_f1(drawn, drafts, iou_threshold=0.5)
print(f"{sum(map(len, drafts))} drafts for {sum(map(len, drawn))} defects")
print(f"{fit['recall']:.0%} of the defects have a draft that fits (IoU 0.5) and can stay as it is")


# %%
# A small detector
# ----------------
# FCOS on the pre-trained network's stages up to stride 8.
def small_detector():
    backbone = create_backbone("efficientnet_lite0", "imagenet")
    stages = [s for s, stride in zip(backbone.stages, backbone.strides, strict=True) if stride <= 8]
    trunk = nn.Sequential(*stages, nn.Conv2d(backbone.channels[len(stages) - 1], 64, 1))
    trunk.out_channels = 64  # the detector's heads normalise 32 groups of channels
    return FCOS(
        trunk,
        num_classes=2,
        min_size=128,
        max_size=128,
        image_mean=backbone.mean,
        image_std=backbone.std,
        anchor_generator=AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),)),
    )


def as_tensors(images):
    return [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in images]


def train_detector(boxes, n_epochs=8, batch_size=6):
    torch.manual_seed(0)
    detector, inputs = small_detector().train(), as_tensors(defective)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    usable = [i for i, some in enumerate(boxes) if len(some)]
    for _ in range(n_epochs):
        for rows in torch.tensor(usable)[torch.randperm(len(usable))].split(batch_size):
            targets = [
                {
                    "boxes": torch.tensor(boxes[i], dtype=torch.float32),
                    "labels": torch.ones(len(boxes[i]), dtype=torch.int64),
                }
                for i in rows.tolist()
            ]
            losses = detector([inputs[i] for i in rows.tolist()], targets)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return detector.eval()


# %%
# Trained with drawn boxes and with drafts
# ----------------------------------------
# Each keeps the boxes above the score at which its F1 on the training images is best.
warnings.simplefilter("ignore", UndefinedMetricWarning)  # above the highest score there is no box
truth = [mask_boxes(mask) for mask in test.masks]


@torch.inference_mode()
def detect(detector, images):
    return [detector([image])[0] for image in as_tensors(images)]


def boxes_above(detections, score):
    return [one["boxes"][one["scores"] >= score].numpy() for one in detections]


def best_score(detections, boxes):
    return max(
        (step / 20 for step in range(1, 20)),
        key=lambda score: box_precision_recall_f1(
            boxes, boxes_above(detections, score), iou_threshold=0.3
        )["f1"],
    )


detected = {"defectcam itself": [found.boxes for found in clf.localize(test.images)]}
for name, boxes in {"detector, drawn boxes": drawn, "detector, drafts": drafts}.items():
    detector = train_detector(boxes)
    score = best_score(detect(detector, defective), boxes)
    detected[name] = boxes_above(detect(detector, test.images), score)
for name, boxes in detected.items():
    scores = box_precision_recall_f1(truth, boxes, iou_threshold=0.3)
    print(
        f"{name:<22} precision {scores['precision']:.2f}, recall {scores['recall']:.2f}, "
        f"F1 {scores['f1']:.2f} at IoU 0.3"
    )

# %%
# What each of them finds in one part
# -----------------------------------
row = int(test.is_defect.argmax())
_, axes = plt.subplots(1, 3, figsize=(10, 4), layout="constrained")
for (name, boxes), ax in zip(detected.items(), axes, strict=True):
    ax.imshow(overlay(test.images[row], 0.0 * test.masks[row], boxes[row]))
    ax.set(title=name, xticks=[], yticks=[])

# %%
# A share of the drafts can stay as they are; a detector that is trained on all of them uncorrected
# is clearly worse than one trained on drawn boxes. So the annotator corrects those that do not fit
# instead of drawing all. Before that, train with ``target="type"``, and ``box_labels`` names each
# draft's type.
