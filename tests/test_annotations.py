"""What others read in the annotations is what `localize` returned, and it comes back."""

from __future__ import annotations

import base64
import copy
import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import globox
import numpy as np
import pytest
import supervision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lxml import etree
from PIL import Image
from pycocotools.coco import COCO

from defectcam import DefectCAMClassifier, Localization
from defectcam.annotations import FORMATS, import_annotations, write_annotations
from defectcam.geometry import Geometry
from defectcam.images import ImageReadError

TYPES = ("dent", "scratch")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def result(path: Path | None, marks: np.ndarray, **changes: Any) -> Localization:
    """Return a result whose heatmap is `marks`, of a type by the side on which it is higher."""
    marks = np.asarray(marks, np.float32)
    sides = np.stack([marks, marks])
    sides[0, :, marks.shape[1] // 2 :] -= 1
    sides[1, :, : marks.shape[1] // 2] -= 1
    parameters: dict[str, Any] = {
        "label": "dent",
        "probability": 0.9,
        "is_defect": True,
        "grid": marks,
        "geometry": Geometry.stretch(marks.shape, marks.shape),
        "threshold": 1.0,
        "decision_threshold": 0.5,
        "min_area": 1,
        "max_boxes": None,
        "merge_distance": None,
        "source": path,
        "good_label": "good",
        "defect_label": "dent",
        "type_grids": sides,
        "defect_labels": TYPES,
    }
    return Localization(**{**parameters, **changes})


def write_image(path: Path, marks: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(marks * 60, 0, 255).astype(np.uint8)).save(path)
    return path


def draw(root: Path) -> list[Localization]:
    """Write images of several sizes, two of the same name, and return results for them."""
    found = []
    blank = np.zeros((30, 44), np.float32)
    good = result(write_image(root / "good" / "000.png", blank), blank, is_defect=False)
    found.append(good.with_threshold(decision_threshold=0.95))
    two = np.zeros((37, 53), np.float32)
    two[3:9, 4:15], two[20:31, 30:53], two[25, 30:40] = 2.5, 1.75, 0
    found.append(result(write_image(root / "bad" / "000.png", two), two))
    nested = np.zeros((41, 41), np.float32)
    nested[5:35, 5:35], nested[9:31, 9:31], nested[15:20, 15:22] = 3, 0, 2
    found.append(result(write_image(root / "bad" / "ring.png", nested), nested))
    parts = np.zeros((25, 60), np.float32)
    parts[2:6, 2:9], parts[10:20, 12:20], parts[5, 40:44] = 2, 2.25, 1.5
    path = write_image(root / "bad" / "deep" / "parts.png", parts)
    found.append(result(path, parts, merge_distance=6))
    return found


@pytest.fixture
def drafts(tmp_path: Path) -> list[Localization]:
    return draw(tmp_path / "images")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "images"


def name_of(found: Localization, root: Path) -> str:
    return Path(found.source).relative_to(root).as_posix()


def masks_of(found: Localization) -> list[np.ndarray]:
    labels = found.component_labels()
    return [labels == number for number in range(1, len(found.boxes) + 1)]


# --- There and back ---------------------------------------------------------------------------

marks_of = st.tuples(st.integers(4, 40), st.integers(4, 40), st.integers(0, 10**6))


@pytest.mark.parametrize("format", FORMATS)
@example(specs=[(18, 35, 970338)], merge=0)  # regions within holes of others
@settings(max_examples=15, deadline=None)
@given(specs=st.lists(marks_of, min_size=1, max_size=3), merge=st.sampled_from([None, 0, 3]))
def test_written_and_imported_are_the_same(format: str, specs: list[Any], merge: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder, "images"), []
        for number, (height, width, seed) in enumerate(specs):
            rng = np.random.default_rng(seed)
            marks = rng.choice([0, 0, 0, 1.5, 2], size=(height, width)).astype(np.float32)
            path = write_image(root / f"f{number % 2}" / f"{number // 2}.png", marks)
            found.append(result(path, marks, merge_distance=merge))
        for shapes in ("box", "polygon") if format != "voc" else ("box",):
            target = Path(folder, shapes)
            names = [name_of(one, root) for one in found]
            write_annotations(found, target, format, names=names, shapes=shapes)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("defectcam.annotations.warn_caller", lambda message: None)
                data = import_annotations(target, format, root)
            by_path = {Path(path): i for i, path in enumerate(data.paths.tolist())}
            for one in found:
                place = by_path[Path(one.source)]
                np.testing.assert_array_equal(data.boxes[place], one.boxes)
                assert data.box_types[place].tolist() == one.box_labels
                if shapes == "box":
                    expected = np.zeros(one.image_size, bool)
                    for left, top, right, bottom in one.boxes.tolist():
                        expected[top:bottom, left:right] = True
                    np.testing.assert_array_equal(np.asarray(data.masks[place]), expected)
                elif format in ("coco", "cvat"):
                    np.testing.assert_array_equal(np.asarray(data.masks[place]), one.mask())
                else:  # holes are filled; bridges between parts may cost a pixel
                    lost = one.mask() & ~np.asarray(data.masks[place])
                    assert lost.sum() <= (0.02 * one.mask().sum() if format == "yolo" else 0)


@pytest.mark.filterwarnings("ignore:.*have not been annotated")
@pytest.mark.parametrize("format", FORMATS)
def test_imported_drafts_are_data_for_training_and_evaluation(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", format)
    data = import_annotations(tmp_path / "out", format, root)
    keys = {"paths", "types", "target", "is_defect", "masks", "groups", "good_label"}
    assert set(data) == keys | {"boxes", "box_types"}
    by_name = {Path(path).relative_to(root).as_posix(): i for i, path in enumerate(data.paths)}
    assert set(by_name) == {name_of(found, root) for found in drafts}
    good = by_name["good/000.png"]
    assert (data.types[good], data.target[good], data.masks[good]) == ("good", False, None)
    assert data.is_defect.sum() == 3
    assert data.types[by_name["bad/000.png"]] == drafts[1].box_labels[1] == "scratch"
    for found in drafts[1:]:
        mask = data.masks[by_name[name_of(found, root)]]
        assert np.asarray(mask).shape == found.image_size


@pytest.mark.filterwarnings("ignore:.*have no box")
def test_imported_masks_are_taken_by_evaluate(
    fitted: DefectCAMClassifier, fitted_parts: Path, tmp_path: Path
) -> None:
    clf = copy.deepcopy(fitted)
    clf.threshold_ = 0.0
    paths = sorted(fitted_parts.glob("*/*.png"))
    write_annotations(clf.localize_iter(paths), tmp_path / "out", "coco")
    data = import_annotations(tmp_path / "out" / "annotations.json", "coco", fitted_parts)
    report = clf.evaluate(data.paths, data.types, masks=data.masks, good_label="good")
    assert report.pixels["n_masks"] == data.is_defect.sum() > 0
    assert report.pixels["pointing"] == 1.0  # its own boxes


# --- COCO, read by pycocotools ----------------------------------------------------------------


@pytest.mark.parametrize("shapes", [None, "polygon", "box"])
def test_coco_is_read_by_pycocotools(
    shapes: str | None, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "coco", shapes=shapes)
    coco = COCO(str(tmp_path / "out" / "annotations.json"))
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(TYPES)
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == [
        name_of(found, root) for found in drafts
    ]
    for image_id, found in zip(coco.getImgIds(), drafts, strict=True):
        annotations = coco.loadAnns(coco.getAnnIds(image_id))
        boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, found.boxes)
        assert [a["score"] for a in annotations] == found.box_scores.tolist()
        labels = [coco.loadCats(a["category_id"])[0]["name"] for a in annotations]
        assert labels == found.box_labels
        if shapes != "box":
            for annotation, mask in zip(annotations, masks_of(found), strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation), mask)
                assert annotation["area"] == mask.sum()
    [ring] = [a for a in coco.anns.values() if isinstance(a.get("segmentation"), dict)] or [None]
    assert (ring is None) == (shapes == "box")


def test_a_result_gives_coco_itself(drafts: list[Localization], tmp_path: Path) -> None:
    document = drafts[1].to_coco()
    assert document["images"][0]["file_name"] == "000.png"
    (tmp_path / "one.json").write_text(json.dumps(document))
    coco = COCO(str(tmp_path / "one.json"))
    for annotation, mask in zip(coco.anns.values(), masks_of(drafts[1]), strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), mask)
    with pytest.raises(ValueError, match="pass file_name"):
        result(None, np.eye(5)).to_coco()
    assert drafts[0].to_coco("good.png")["annotations"] == []


def test_boxes_that_left_their_polygons_are_told_of(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "coco")
    file = tmp_path / "out" / "annotations.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["bbox"] = [20, 10, 8, 6]
    file.write_text(json.dumps(document))
    with pytest.warns(UserWarning, match="1 boxes in .* pass shapes='box'"):
        data = import_annotations(file, "coco", root)
    np.testing.assert_array_equal(np.asarray(data.masks[1]), drafts[1].mask())
    data = import_annotations(file, "coco", root, shapes="box")
    assert np.asarray(data.masks[1])[10:16, 20:28].all()


# --- YOLO, Pascal VOC and LabelMe, read by supervision ----------------------------------------


def compare_with_supervision(
    data: Any, drafts: list[Localization], masks: Callable[[Localization], Any] | None
) -> None:
    by_path = {Path(found.source): found for found in drafts}
    assert len(data) > 0
    for path, _, detections in data:
        found = by_path[Path(path)]
        assert len(detections) == len(found.boxes)
        if not len(detections):
            continue
        np.testing.assert_allclose(detections.xyxy, found.boxes, atol=1e-4)
        assert [data.classes[i] for i in detections.class_id] == found.box_labels
        if masks is not None:
            np.testing.assert_array_equal(detections.mask, masks(found))


def box_masks(found: Localization) -> np.ndarray:
    """Return what supervision draws for boxes: with the last row and column, where it has one."""
    height, width = found.image_size
    masks = np.zeros((len(found.boxes), height, width), bool)
    for mask, (left, top, right, bottom) in zip(masks, found.boxes.tolist(), strict=True):
        mask[top : bottom + 1, left : right + 1] = True
    return masks


@pytest.mark.parametrize("folder", ["good", "bad", "bad/deep"])
def test_yolo_is_read_by_supervision(
    folder: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, "yolo")
    data = supervision.DetectionDataset.from_yolo(
        str(root / folder), str(out / "labels" / folder), str(out / "data.yaml")
    )
    assert data.classes == list(TYPES)
    compare_with_supervision(data, drafts, None)
    assert (out / "labels" / "good" / "000.txt").read_text() == ""


def test_yolo_polygons_are_read_by_supervision(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, "yolo", shapes="polygon")
    for folder in ("bad", "bad/deep"):
        data = supervision.DetectionDataset.from_yolo(
            str(root / folder),
            str(out / "labels" / folder),
            str(out / "data.yaml"),
            force_masks=True,
        )
        for path, _, detections in data:
            [found] = [one for one in drafts if Path(one.source) == Path(path)]
            np.testing.assert_allclose(detections.xyxy, found.boxes, atol=1e-4)
            for drawn, mask in zip(detections.mask, masks_of(found), strict=True):
                assert (drawn & mask).sum() >= 0.95 * mask.sum()


@pytest.mark.parametrize("folder", ["good", "bad", "bad/deep"])
def test_voc_is_read_by_supervision(
    folder: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "voc")
    data = supervision.DetectionDataset.from_pascal_voc(
        str(root / folder), str(tmp_path / "out" / "Annotations" / folder)
    )
    compare_with_supervision(data, drafts, None)


VOC_SCHEMA = """
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema">
 <xs:element name="annotation"><xs:complexType><xs:sequence>
  <xs:element name="folder" type="xs:string"/>
  <xs:element name="filename" type="xs:string"/>
  <xs:element name="source"><xs:complexType><xs:sequence>
   <xs:element name="database" type="xs:string"/>
   <xs:element name="annotation" type="xs:string"/>
   <xs:element name="image" type="xs:string"/>
  </xs:sequence></xs:complexType></xs:element>
  <xs:element name="size"><xs:complexType><xs:sequence>
   <xs:element name="width" type="xs:positiveInteger"/>
   <xs:element name="height" type="xs:positiveInteger"/>
   <xs:element name="depth" type="xs:positiveInteger"/>
  </xs:sequence></xs:complexType></xs:element>
  <xs:element name="segmented" type="xs:boolean"/>
  <xs:element name="object" minOccurs="0" maxOccurs="unbounded"><xs:complexType><xs:sequence>
   <xs:element name="name" type="xs:string"/>
   <xs:element name="pose" type="xs:string"/>
   <xs:element name="truncated" type="xs:boolean"/>
   <xs:element name="difficult" type="xs:boolean"/>
   <xs:element name="bndbox"><xs:complexType><xs:sequence>
    <xs:element name="xmin" type="xs:positiveInteger"/>
    <xs:element name="ymin" type="xs:positiveInteger"/>
    <xs:element name="xmax" type="xs:positiveInteger"/>
    <xs:element name="ymax" type="xs:positiveInteger"/>
   </xs:sequence></xs:complexType></xs:element>
  </xs:sequence></xs:complexType></xs:element>
 </xs:sequence></xs:complexType></xs:element>
</xs:schema>"""  # the development kit's annotations, of which there is no official schema


def test_voc_is_valid_and_read_by_lxml(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "voc")
    schema = etree.XMLSchema(etree.fromstring(VOC_SCHEMA))
    for found in drafts:
        name = Path(name_of(found, root))
        file = tmp_path / "out" / "Annotations" / name.with_suffix(".xml")
        tree = etree.parse(str(file))
        schema.assertValid(tree)
        assert tree.findtext("filename") == name.name
        corners = [
            [int(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
            for box in tree.iter("bndbox")
        ]
        # Pixels are counted from 1, and the last one is inside.
        expected = np.add(found.boxes, [1, 1, 0, 0])
        assert corners == expected.tolist()
        assert [thing.findtext("name") for thing in tree.iter("object")] == found.box_labels
    listed = (tmp_path / "out" / "ImageSets" / "Main" / "default.txt").read_text().split()
    assert listed == [Path(name_of(f, root)).with_suffix("").as_posix() for f in drafts]


@pytest.mark.parametrize("folder", ["good", "bad", "bad/deep"])
def test_labelme_is_read_by_supervision_and_globox(
    folder: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, "labelme")
    data = supervision.DetectionDataset.from_labelme(str(root / folder), str(out / folder))
    compare_with_supervision(data, drafts, None)
    for found in drafts:
        file = out / Path(name_of(found, root)).with_suffix(".json")
        assert (file.parent / json.loads(file.read_text())["imagePath"]).resolve() == Path(
            found.source
        ).resolve()
        read = globox.Annotation.from_labelme(file)
        assert [box.label for box in read.boxes] == found.box_labels
        assert [box.ltrb for box in read.boxes] == [tuple(box) for box in found.boxes.tolist()]


def test_labelme_polygons_are_read_by_supervision(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, "labelme", shapes="polygon")
    for folder in ("bad", "bad/deep"):
        data = supervision.DetectionDataset.from_labelme(str(root / folder), str(out / folder))
        for path, _, detections in data:
            [found] = [one for one in drafts if Path(one.source) == Path(path)]
            np.testing.assert_allclose(detections.xyxy, found.boxes, atol=1e-4)
            for drawn, mask in zip(detections.mask, masks_of(found), strict=True):
                assert (drawn & mask).sum() == mask.sum()


@pytest.mark.parametrize("shapes", ["box", "polygon"])
def test_labelme_is_read_by_labelme(
    shapes: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    """Run where LabelMe, which needs Qt, is installed; it is licensed under the GPL."""
    label_file = pytest.importorskip("labelme._label_file", exc_type=ImportError)
    write_annotations(drafts, tmp_path / "out", "labelme", shapes=shapes)
    for found in drafts:
        file = tmp_path / "out" / Path(name_of(found, root)).with_suffix(".json")
        read = label_file.read_label_file(str(file))
        scores = {shape["other_data"]["score"] for shape in read.shapes}
        assert scores == set(found.box_scores.tolist())
        if shapes == "box":
            corners = [np.ravel(shape["points"]).tolist() for shape in read.shapes]
            assert corners == found.boxes.tolist()


# --- CVAT, read by globox and lxml ------------------------------------------------------------


def test_cvat_is_read_by_globox(drafts: list[Localization], root: Path, tmp_path: Path) -> None:
    write_annotations(drafts, tmp_path / "out", "cvat")
    read = globox.AnnotationSet.from_cvat(tmp_path / "out" / "annotations.xml")
    assert len(read) == len(drafts)
    for found in drafts:
        annotation = read[name_of(found, root)]
        assert annotation.image_size == found.image_size[::-1]
        assert [box.label for box in annotation.boxes] == found.box_labels
        assert [box.ltrb for box in annotation.boxes] == [tuple(b) for b in found.boxes.tolist()]


@pytest.mark.parametrize("format", ["cvat", "voc"])
def test_cvat_and_voc_are_read_by_datumaro(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    """Run where Datumaro is installed, whose pins exclude other releases of OpenCV and pandas."""
    datumaro = pytest.importorskip("datumaro", exc_type=ImportError)
    shapes, out = "polygon" if format == "cvat" else "box", tmp_path / "out"
    write_annotations(drafts, out, format, shapes=shapes, copy_images=True)
    path = out / "annotations.xml" if format == "cvat" else out
    read = {item.id: item.annotations for item in datumaro.Dataset.import_from(str(path), format)}
    assert len(read) == len(drafts)
    for found in drafts:
        annotations = read[Path(name_of(found, root)).with_suffix("").as_posix()]
        if format == "voc":
            corners = [a.get_bbox() for a in annotations]
            boxes = [[x, y, x + w, y + h] for x, y, w, h in corners]
            # It takes the numbers as they stand, though pixels are counted from 1.
            assert boxes == np.add(found.boxes, [1, 1, 0, 0]).tolist()
            continue
        drawn = np.zeros(found.image_size, bool)
        for annotation in annotations:
            if annotation.type == datumaro.AnnotationType.mask:
                drawn |= np.asarray(annotation.image, bool)
            else:
                flat = annotation.points
                corners = list(zip(flat[::2], flat[1::2], strict=True))
                drawn |= inside(corners, found.image_size)
        np.testing.assert_array_equal(drawn, found.mask())


def test_cvat_polygons_and_masks_are_as_documented(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "cvat", shapes="polygon")
    tree = etree.parse(str(tmp_path / "out" / "annotations.xml"))
    assert tree.findtext("version") == "1.1"
    names = [label.findtext("name") for label in tree.iter("label")]
    assert names == list(TYPES)
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [label["name"] for label in labels] == names
    images = list(tree.iter("image"))
    assert [int(image.get("id")) for image in images] == [0, 1, 2, 3]
    for image, found in zip(images, drafts, strict=True):
        drawn = np.zeros(found.image_size, bool)
        scores = [float(a.text) for a in image.iter("attribute") if a.get("name") == "score"]
        assert set(scores) == set(found.box_scores.tolist())
        for mask in image.iter("mask"):
            left, top, width, height = (
                int(mask.get(name)) for name in ("left", "top", "width", "height")
            )
            lengths = [int(length) for length in mask.get("rle").split(",")]
            pixels = np.repeat(np.arange(len(lengths)) % 2, lengths)  # along the rows
            drawn[top : top + height, left : left + width] |= pixels.reshape(height, width) == 1
        for polygon in image.iter("polygon"):
            corners = [tuple(map(float, p.split(","))) for p in polygon.get("points").split(";")]
            drawn |= inside(corners, found.image_size)
        np.testing.assert_array_equal(drawn, found.mask())
    [ring] = tree.iter("mask")
    assert ring.getparent().get("name") == "bad/ring.png"
    groups = [polygon.get("group_id") for polygon in images[3].iter("polygon")]
    assert len(groups) == 3
    assert groups[0] == groups[1] is not None


def inside(corners: list[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """Return the slow, obvious polygon: the centres of pixels with an odd number of edges left."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    odd = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        crosses = (y0 <= y) != (y1 <= y)
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        odd ^= crosses & (at < x)
    return odd


# --- Label Studio, read by its own converter --------------------------------------------------


def as_annotated(file: Path, images: dict[str, Path]) -> Path:
    """Do what Label Studio does when drafts are submitted: predictions become annotations."""
    tasks = json.loads(file.read_text())
    for task in tasks:
        [prediction] = task.pop("predictions")
        task["annotations"] = [{"id": task["id"], "result": prediction["result"]}]
        task["data"]["image"] = str(images[task["data"]["file_name"]])
    submitted = file.with_name("submitted.json")
    submitted.write_text(json.dumps(tasks))
    return submitted


@pytest.mark.parametrize("shapes", ["box", "polygon"])
def test_label_studio_is_read_by_its_converter(
    shapes: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    """Run where Label Studio's SDK is installed, whose pins exclude other releases of OpenCV."""
    module = pytest.importorskip("label_studio_sdk.converter.converter", exc_type=ImportError)
    out = tmp_path / "out"
    write_annotations(drafts, out, "labelstudio", shapes=shapes)
    images = {name_of(found, root): Path(found.source) for found in drafts}
    submitted = as_annotated(out / "tasks.json", images)
    converter = module.Converter((out / "config.xml").read_text(), str(tmp_path))
    converter.convert_to_coco(str(submitted), str(tmp_path / "converted"), is_dir=False)
    coco = json.loads((tmp_path / "converted" / "result.json").read_text())
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    assert [Path(image["file_name"]) for image in coco["images"]] == list(images.values())
    for image, found in zip(coco["images"], drafts, strict=True):
        of_image = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        if shapes == "box":
            boxes = np.array([a["bbox"] for a in of_image]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_allclose(boxes, found.boxes, atol=1e-9)
            assert [names[a["category_id"]] for a in of_image] == found.box_labels
        else:
            drawn = np.zeros(found.image_size, bool)
            for annotation in of_image:
                [flat] = annotation["segmentation"]
                corners = [
                    tuple(map(round, pair)) for pair in zip(flat[::2], flat[1::2], strict=True)
                ]
                drawn |= inside(corners, found.image_size)
            assert (drawn >= found.mask()).all()
            if "ring" not in image["file_name"]:
                np.testing.assert_array_equal(drawn, found.mask())


def test_label_studio_tasks_are_as_documented(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", "labelstudio")
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    config = ET.parse(tmp_path / "out" / "config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(TYPES)
    tags = {element.get("name"): element for element in config}
    for task, found in zip(tasks, drafts, strict=True):
        assert task["data"]["image"] == f"/data/local-files/?d={name_of(found, root)}"
        [prediction] = task["predictions"]
        height, width = found.image_size
        boxes = []
        for entry in prediction["result"]:
            tag = tags[entry["from_name"]]
            assert tag.tag.lower() == entry["type"] == "rectanglelabels"
            assert tag.get("toName") == entry["to_name"] == "image"
            assert (entry["original_height"], entry["original_width"]) == (height, width)
            x, y, w, h = (entry["value"][name] for name in ("x", "y", "width", "height"))
            boxes.append(np.array([x, y, x + w, y + h]) * [width, height, width, height] / 100)
        np.testing.assert_allclose(np.reshape(boxes, (-1, 4)), found.boxes, atol=1e-9)
        scores = [entry["score"] for entry in prediction["result"]]
        assert scores == found.box_scores.tolist()


def test_label_studio_prefers_what_people_drew(
    drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out" / "tasks.json"
    write_annotations(drafts, file.parent, "labelstudio")
    with pytest.warns(UserWarning, match="4 of 4 tasks .* have not been annotated"):
        import_annotations(file, "labelstudio", root)
    tasks = json.loads(file.read_text())
    drawn = copy.deepcopy(tasks[1]["predictions"][0]["result"][:1])
    drawn[0]["value"].update(x=0, y=0, width=50, height=100)
    tasks[1]["annotations"] = [
        {"result": drawn, "created_at": "2024-02-02"},
        {"result": [], "created_at": "2024-01-01"},
        {"result": [], "created_at": "2024-03-03", "was_cancelled": True},
    ]
    tasks[2]["annotations"] = [{"result": []}]  # somebody has deleted the draft
    del tasks[3]["data"]["file_name"]  # only the address is left
    file.write_text(json.dumps(tasks))
    with pytest.warns(UserWarning, match="2 of 4"):
        data = import_annotations(file, "labelstudio", root)
    assert data.boxes[1].tolist() == [[0, 0, 27, 37]]
    assert data.types.tolist()[2] == "good"
    np.testing.assert_array_equal(data.boxes[3], drafts[3].boxes)


# --- Names, files and folders -----------------------------------------------------------------


def files_of(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("format", FORMATS)
def test_names_of_all_kinds_come_back(format: str, tmp_path: Path) -> None:
    marks = np.zeros((20, 20))
    marks[3:9, 4:12] = 2
    names = [
        "-rf.png",
        ".hidden.png",
        "=1+1.png",
        "a b&<c>\"'.png",
        "ü/🙂.png",
        "12:30:15.png",
        "..dots.png",
    ]
    names += ["x/same.png", "y/same.png", "new.tar.png", "%41?d=b.png", "#;,|.png"]
    root = tmp_path / "images"
    found = [result(write_image(root / name, marks), marks) for name in names]
    write_annotations(found, tmp_path / "out", format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defectcam.annotations.warn_caller", lambda message: None)
        data = import_annotations(tmp_path / "out", format, root)
    assert {Path(path).relative_to(root).as_posix() for path in data.paths} == set(names)
    assert all(boxes.tolist() == [[4, 3, 12, 9]] for boxes in data.boxes)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["../a.png"], "without '..'"),
        (["/a.png"], "relative"),
        (["a\nb.png"], "control characters"),
        (["a\\b.png"], "backslash"),
        (["\udcff.png"], "not UTF-8"),
        (["a.png", "a.png"], "same name"),
        (["a.png", "A.png"], "same name"),
        (["a.png", "b.png", "c.png"], "one name per result"),
    ],
)
def test_names_that_cannot_be_written_are_refused(
    names: list[str], problem: str, tmp_path: Path
) -> None:
    found = [result(None, np.eye(9) * 2)] * min(len(names), 2)
    with pytest.raises(ValueError, match=problem):
        write_annotations(found, tmp_path / "out", "coco", names=names)
    assert list(tmp_path.iterdir()) == []


def test_images_of_one_stem_keep_apart(tmp_path: Path) -> None:
    root, marks = tmp_path / "images", np.zeros((20, 20))
    marks[3:9, 4:12] = 2
    paths = [write_image(root / name, marks) for name in ("1.png", "1.bmp", "2.png")]
    found = [result(path, marks) for path in paths]
    for format, below in (("voc", "Annotations/"), ("labelme", "")):
        write_annotations(found, tmp_path / format, format)
        suffix = "xml" if format == "voc" else "json"
        expected = {f"{below}{name}.{suffix}" for name in ("1.png", "1.bmp", "2")}
        assert expected <= set(files_of(tmp_path / format))
        data = import_annotations(tmp_path / format, format, root)
        assert sorted(data.paths.tolist()) == sorted(map(str, paths))
    with pytest.raises(ValueError, match=r"'1.png' and '1.bmp' would have the same label file"):
        write_annotations(found, tmp_path / "yolo", "yolo")


def test_labels_of_any_kind_are_written(tmp_path: Path) -> None:
    marks = np.zeros((20, 20))
    marks[3:9, 4:12] = 2
    path = write_image(tmp_path / "images" / "1.png", marks)
    for label, text in (
        (True, "True"),
        (7, "7"),
        ("- {a}: '\"&<", "- {a}: '\"&<"),
        ("Ölfleck", "Ölfleck"),
    ):
        one_type = {"defect_label": label, "label": label, "good_label": 0}
        found = [result(path, marks, type_grids=None, defect_labels=None, **one_type)]
        for format in FORMATS:
            out = tmp_path / format
            write_annotations(found, out, format, overwrite=True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("defectcam.annotations.warn_caller", lambda message: None)
                data = import_annotations(out, format, path.parent)
            assert data.types.tolist() == [text]
    found = [result(path, marks, type_grids=None, defect_labels=None, defect_label="a\x00b")]
    with pytest.raises(ValueError, match=r"the label .* control characters"):
        write_annotations(found, tmp_path / "nul", "voc")


def test_numbers_of_classes_are_the_models(drafts: list[Localization], tmp_path: Path) -> None:
    write_annotations(drafts, tmp_path / "a", "coco", classes=["scratch", "chip", "dent"])
    document = json.loads((tmp_path / "a" / "annotations.json").read_text())
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    assert names == {1: "scratch", 2: "chip", 3: "dent"}


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_is_overwritten_or_left_half_written(
    format: str, drafts: list[Localization], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, format)
    (out / "mine.txt").write_text("mine")
    before = {name: (out / name).read_bytes() for name in files_of(out)}
    with pytest.raises(FileExistsError, match="not empty"):
        write_annotations(drafts, out, format)
    with pytest.raises(FileExistsError, match="is a file"):
        write_annotations(drafts, out / "mine.txt", format)
    with monkeypatch.context() as patch:  # the disk is full, say
        patch.setattr(Path, "write_bytes", fail)
        patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="full"):
            write_annotations(drafts, out, format, overwrite=True)
        with pytest.raises(OSError, match="full"):
            write_annotations(drafts, tmp_path / "other", format)
    assert {name: (out / name).read_bytes() for name in files_of(out)} == before
    write_annotations(drafts, out, format, overwrite=True)
    assert (out / "mine.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]


def fail(*_: Any, **__: Any) -> None:
    raise OSError("the disk is full")


def test_links_do_not_lead_out_of_the_folder(drafts: list[Localization], tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "labels").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(OSError, match="outside of"):
        write_annotations(drafts, out, "yolo", overwrite=True)
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["labels"]


@pytest.mark.parametrize("format", FORMATS)
def test_images_are_copied_to_where_the_format_expects_them(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, format, copy_images=True)
    below = {"labelme": "", "voc": "JPEGImages/"}.get(format, "images/")
    for found in drafts:
        copied = out / f"{below}{name_of(found, root)}"
        assert copied.read_bytes() == Path(found.source).read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defectcam.annotations.warn_caller", lambda message: None)
        data = import_annotations(out, format)  # without saying where the images are
    assert len(data.paths) == 4
    if format == "labelme":
        with pytest.raises(ValueError, match="would replace the image"):
            write_annotations(drafts, root, format, copy_images=True, overwrite=True)
        write_annotations(drafts, root, format, overwrite=True)  # beside the images
        assert json.loads((root / "good" / "000.json").read_text())["imagePath"] == "000.png"


@pytest.mark.filterwarnings("ignore:.*have not been annotated", "ignore:.*are left out")
@pytest.mark.parametrize("format", FORMATS)
def test_defects_without_a_box_are_not_lost_silently(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    unboxed = drafts[1].with_threshold(threshold=9.0)
    assert unboxed.is_defect
    assert len(unboxed.boxes) == 0
    if format in ("coco", "voc", "yolo"):
        with pytest.warns(UserWarning, match=r"1 images are called defective.*bad/000.png"):
            write_annotations([drafts[0], unboxed], tmp_path / "out", format)
        return
    write_annotations([drafts[0], unboxed], tmp_path / "out", format)
    data = import_annotations(tmp_path / "out", format, root)
    order = np.argsort(data.paths)
    assert data.types[order].tolist() == ["dent", "good"]
    assert data.masks[order].tolist() == [None, None]


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_a_single_result_is_written_as_a_list_of_it(
    format: str, drafts: list[Localization], tmp_path: Path
) -> None:
    write_annotations(drafts[0], tmp_path / "one", format)
    write_annotations(drafts[:1], tmp_path / "list", format)

    def files(root: Path) -> dict[str, bytes]:
        paths = (path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}

    assert files(tmp_path / "one") == files(tmp_path / "list")


def test_wrong_parameters_are_named(drafts: list[Localization], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong, match in (
        ({"format": "pdf"}, "format must be one of coco"),
        ({"format": "coco", "shapes": "circle"}, "shapes must be"),
        ({"format": "voc", "shapes": "polygon"}, "Pascal VOC"),
        ({"format": "coco", "tolerance": -1}, "tolerance must be"),
        ({"format": "coco", "tolerance": float("nan")}, "tolerance must be"),
    ):
        with pytest.raises(ValueError, match=match):
            write_annotations(drafts, out, **wrong)
    with pytest.raises(ValueError, match="results is empty"):
        write_annotations([], out, "coco")
    with pytest.raises(ValueError, match="pass names"):
        write_annotations([result(None, np.eye(5))], out, "coco")
    with pytest.raises(ValueError, match="no file that could be copied"):
        arrays = [result(None, np.eye(5))]
        write_annotations(arrays, out, "coco", names=["a.png"], copy_images=True)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        write_annotations(drafts, tmp_path / "no" / "out", "coco")
    assert not out.exists()


def test_tolerance_makes_fewer_corners(drafts: list[Localization], tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :60]
    marks = 3 - np.hypot(rows - 30, columns - 30) / 10
    found = [result(write_image(tmp_path / "i" / "1.png", marks), marks)]
    corners = []
    for tolerance in (0, 1.5):
        out = tmp_path / str(tolerance)
        write_annotations(found, out, "coco", tolerance=tolerance)
        [annotation] = json.loads((out / "annotations.json").read_text())["annotations"]
        corners.append(len(annotation["segmentation"][0]) / 2)
    assert corners[1] < corners[0] / 3


# --- What people draw -------------------------------------------------------------------------


@pytest.fixture
def blank(tmp_path: Path) -> Path:
    write_image(tmp_path / "images" / "1.png", np.zeros((40, 60)))
    return tmp_path / "images"


def imported(text: str, name: str, format: str, images: Path) -> Any:
    file = images.parent / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return import_annotations(file, format, images)


def labelme(shapes: Any, **changes: Any) -> str:
    document = {"imagePath": "..\\else\\1.png", "imageHeight": 40, "imageWidth": 60}
    return json.dumps({**document, "shapes": shapes, "flags": {}, **changes})


def test_labelme_shapes_of_all_kinds(blank: Path) -> None:
    shapes = [
        {"label": "dent", "shape_type": "rectangle", "points": [[9.5, 8], [3, 2]]},
        {"label": "dent", "shape_type": "circle", "points": [[30, 20], [33, 24]]},
        {"label": "dent", "shape_type": "polygon", "points": [[40, 1], [50, 1], [50, 9]]},
        {"label": "good", "shape_type": "rectangle", "points": [[0, 0], [60, 40]]},
    ]
    data = imported(labelme(shapes), "1.json", "labelme", blank)
    assert data.boxes[0].tolist() == [[3, 2, 10, 8], [25, 15, 35, 25], [40, 1, 50, 9]]
    mask = np.asarray(data.masks[0])
    assert mask[15:25, 25:35].sum() == pytest.approx(np.pi * 25, rel=0.05)
    assert mask[30, 10] == 0  # a shape that is called good marks nothing


def test_cvat_shapes_of_all_kinds(blank: Path) -> None:
    text = """<annotations><image id="0" name="1.png" width="60" height="40">
    <box label="dent" xtl="10.00" ytl="10.00" xbr="20.00" ybr="14.00" rotation="90.0"/>
    <ellipse label="dent" cx="40" cy="20" rx="6" ry="3"/>
    <mask label="dent" rle="1, 2, 1" left="50" top="30" width="2" height="2"/>
    </image></annotations>"""
    data = imported(text, "a.xml", "cvat", blank)
    assert data.boxes[0].tolist() == [[13, 7, 17, 17], [34, 17, 46, 23], [50, 30, 52, 32]]
    mask = np.asarray(data.masks[0])
    assert mask[7:17, 13:17].all()
    assert mask[30:32, 50:52].tolist() == [[False, True], [True, False]]


def test_yolo_lines_of_all_kinds(blank: Path) -> None:
    folder = blank.parent / "set"
    (folder / "labels").mkdir(parents=True)
    (folder / "classes.txt").write_text("dent\nscratch\n")
    lines = ["0 0.5 0.5 0.1 0.1", "", "1 0.25 0.25 0.5 0.5 0.87", "1 0 0 0.1 0 0.1 0.1"]
    (folder / "labels" / "1.txt").write_text("\n".join(lines))
    data = import_annotations(folder, "yolo", blank)
    assert data.boxes[0].tolist() == [[27, 18, 33, 22], [0, 0, 30, 20], [0, 0, 6, 4]]
    assert data.box_types[0].tolist() == ["dent", "scratch", "scratch"]


LINE = "0 0.5 0.5 0.1 0.1\n"  # [27, 18, 33, 22] in an image of 60 x 40


def yolo_set(root: Path, **files: str | None) -> Path:
    """Write a data set: text, or an image where there is none."""
    for name, text in files.items():
        if text is None:
            write_image(root / name, np.zeros((40, 60)))
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def boxes_of(data: Any, root: Path) -> dict[str, Any]:
    return {
        Path(path).relative_to(root).as_posix(): boxes.tolist()
        for path, boxes in zip(data.paths, data.boxes, strict=True)
    }


def test_yolo_images_without_a_label_file_are_good(tmp_path: Path) -> None:
    names = ("images/a/1.png", "images/a/2.png", "images/3.png")
    files = {"data.yaml": "names: [dent]", "labels/a/1.txt": LINE, **dict.fromkeys(names)}
    root = yolo_set(tmp_path, **files)
    for images in (None, root / "images", [root / name for name in names]):
        data = import_annotations(root, "yolo", images)
        assert boxes_of(data, root) == {names[0]: [[27, 18, 33, 22]], names[1]: [], names[2]: []}
        assert data.types.tolist() == ["dent", "good", "good"]
        assert data.masks[1] is None


def test_yolo_images_of_the_working_directory_are_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"classes.txt": "dent", "1.txt": LINE, "1.png": None, "2.png": None}
    monkeypatch.chdir(yolo_set(tmp_path, **files))
    assert import_annotations(".", "yolo").paths.tolist() == ["1.png", "2.png"]


def test_yolo_labels_behind_links_are_read(tmp_path: Path) -> None:
    """Their images would be good ones otherwise."""
    files = {"set/data.yaml": "names: [dent]", "elsewhere/1.txt": LINE, "set/images/a/1.png": None}
    root = yolo_set(tmp_path, **files) / "set"
    (root / "labels").mkdir()
    (root / "labels" / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere" / "back").symlink_to(root / "labels", target_is_directory=True)
    assert import_annotations(root, "yolo").types.tolist() == ["dent"]


ROBOFLOW = {
    "data.yaml": "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['dent']\n",
    "README.roboflow.txt": "https://universe.roboflow.com",
    "train/images/1.png": None,
    "train/images/2.png": None,
    "train/labels/1.txt": LINE,
    "valid/images/1.png": None,
    "valid/labels/1.txt": "",
    "curves/1.png": None,
}
CVAT_YOLO = {
    "obj.names": "dent\n",
    "obj.data": "classes = 1\nnames = data/obj.names\n",
    "train.txt": "data/obj_train_data/a/1.png\n",
    "obj_train_data/a/1.txt": LINE,
    "obj_valid_data/2.txt": "",
}


@pytest.mark.parametrize("table", ["", "data.yaml"])
@pytest.mark.parametrize("given", [False, True])
def test_yolo_as_roboflow_lays_it_out(table: str, given: bool, tmp_path: Path) -> None:
    root = yolo_set(tmp_path, **ROBOFLOW)
    images = [root / name for name in ROBOFLOW if "/images/" in name] if given else None
    data = import_annotations(root / table, "yolo", images)
    names = ("train/images/1.png", "valid/images/1.png", "train/images/2.png")
    assert boxes_of(data, root) == {names[0]: [[27, 18, 33, 22]], names[1]: [], names[2]: []}


@pytest.mark.parametrize("table", ["", "obj.names"])
def test_yolo_as_cvat_lays_it_out(table: str, tmp_path: Path) -> None:
    pictures = {"obj_train_data/a/1.png": None, "obj_valid_data/2.png": None}
    root = yolo_set(tmp_path / "whole", **CVAT_YOLO, **pictures)
    expected = {"obj_train_data/a/1.png": [[27, 18, 33, 22]], "obj_valid_data/2.png": []}
    assert boxes_of(import_annotations(root / table, "yolo"), root) == expected
    root = yolo_set(tmp_path / "without", **CVAT_YOLO)
    images = yolo_set(tmp_path / "images", **{"a/1.png": None, "2.png": None})
    data = import_annotations(root / table, "yolo", images)
    assert boxes_of(data, images) == {"a/1.png": [[27, 18, 33, 22]], "2.png": []}


@pytest.mark.parametrize("format", ["labelme", "voc"])
def test_images_without_a_file_are_not_left_out_silently(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    write_annotations(drafts, tmp_path / "out", format)
    assert len(import_annotations(tmp_path / "out", format, root).paths) == 4
    for name in ("7.png", "8.png"):
        write_image(root / "new" / name, np.zeros((40, 60)))
    what = r"2 images have no file .* left out, .*7\.png.* need a file without (objects|shapes)"
    with pytest.warns(UserWarning, match=what):
        data = import_annotations(tmp_path / "out", format, root)
    assert len(data.paths) == 4


def test_labelme_names_an_image_as_its_link_does(tmp_path: Path) -> None:
    marks = np.zeros((20, 20))
    marks[3:9, 4:12] = 2
    image = write_image(tmp_path / "store" / "0a1b2c.png", marks)
    link = tmp_path / "images" / "part.png"
    link.parent.mkdir()
    link.symlink_to(image)
    write_annotations([result(link, marks)], tmp_path / "out", "labelme")
    document = json.loads((tmp_path / "out" / "part.json").read_text())
    assert document["imagePath"] == "../images/part.png"
    data = import_annotations(tmp_path / "out", "labelme", link.parent)
    assert data.paths.tolist() == [str(link)]


MAIN_FILES = {"annotations.json", "annotations.xml", "tasks.json", "bad/000.json"}
MAIN_FILES |= {"Annotations/bad/000.xml", "labels/bad/000.txt"}


# --- Malformed and hostile files --------------------------------------------------------------

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>
<annotations><image id="0" name="1.png" width="60" height="40"><tag label="&b;"/></image>
</annotations>"""
EXTERNAL = """<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<annotation><filename>&x;</filename></annotation>"""
IMAGE = '<annotations><image id="0" name="1.png" width="60" height="40">{}</image></annotations>'
SIZE = "<size><width>60</width><height>40</height></size>"
VOC = f"<annotation><filename>{{}}</filename>{SIZE}{{}}</annotation>"
OBJECT = "<object><name>dent</name><bndbox>{}</bndbox></object>"
LS_BOX = {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["dent"]}
WIDE = base64.b64encode(b"P1 61 2 " + b"1 " * 122).decode()  # a mask wider than the image
COCO_LISTS = {
    "images": [{"id": 1, "file_name": "1.png", "height": 40, "width": 60}],
    "categories": [{"id": 1, "name": "dent"}],
    "annotations": [],
}


def coco(**changes: Any) -> str:
    return json.dumps({**COCO_LISTS, **changes})


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 17, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **changes}


def task(result: Any, **changes: Any) -> str:
    data = {"data": {"file_name": "1.png"}, "annotations": [{"result": result}]}
    return json.dumps([{**data, **changes}])


@pytest.mark.parametrize(
    ("format", "text", "place"),
    [
        ("coco", "{", "cannot be read as JSON"),
        ("coco", "[" * 100_000, "cannot be read as JSON"),
        ("coco", "[]", "another layout"),
        ("coco", coco(images=[7]), "no object"),
        ("coco", coco(images=[{"id": 1, "file_name": "../1.png"}]), r"'\.\./1\.png'"),
        ("coco", coco(images=[{"id": 1, "file_name": 5}]), "image 1 has a file_name"),
        ("coco", coco(images=[{"id": 1, "file_name": "1.png", "width": 9, "height": 9}]), "says"),
        ("coco", coco(images=COCO_LISTS["images"] + [{"id": 2, "file_name": "1.png"}]), "twice"),
        ("coco", coco(annotations=[annotation(bbox=[1, 2])]), "annotation 17 needs a bbox"),
        ("coco", coco(annotations=[annotation(bbox=[1, 2, -3, 4])]), "annotation 17 has the bbox"),
        ("coco", coco(annotations=[annotation(bbox=[1, 2, float("inf"), 4])]), "annotation 17"),
        ("coco", coco(annotations=[annotation(bbox=[1, 2, 0, 4])]), "annotation 17 .* no area"),
        ("coco", coco(annotations=[annotation(category_id=9)]), "there is no 9"),
        ("coco", coco(annotations=[annotation(segmentation=[[1, 2]])]), "annotation 17 has a seg"),
        (
            "coco",
            coco(annotations=[annotation(segmentation={"size": [40, 60], "counts": [10**12]})]),
            "annotation 17 has run lengths",
        ),
        ("coco", coco(images=[{"id": 1, "file_name": "x" * 999}]), "there are 0"),
        ("coco", coco(annotations=[annotation(segmentation=[[1, 1, 9e9, 1, 9, 9]])]), "image"),
        (
            "coco",
            coco(annotations=[annotation(segmentation={"size": [40, 60], "counts": "o" * 99})]),
            "annotation 17 has run lengths",
        ),
        (
            "coco",
            coco(annotations=[annotation(segmentation={"size": [40, 60], "counts": [-5, 2405]})]),
            "annotation 17 has run lengths",
        ),
        ("cvat", "<annotations>", "cannot be read as XML: no element"),
        ("cvat", BOMB, "cannot be read as XML"),
        ("cvat", "<annotation/>", "expected <annotations>"),
        ("cvat", "<annotations/>", "no images"),
        ("cvat", IMAGE.format('<box label="a" xtl="1"/>'), "image 1, box 1, needs finite numbers"),
        ("cvat", IMAGE.format('<box xtl="1"/>'), "image 1, box 1, has no label"),
        ("cvat", IMAGE.format('<polyline label="a" points="1,2;3,4"/>'), "polyline 1, has no area"),
        (
            "cvat",
            IMAGE.format('<box label="a" xtl="1" ytl="2" xbr="1" ybr="9"/>'),
            "box 1, has no area",
        ),
        (
            "cvat",
            IMAGE.format('<polygon label="a" points="1,1;3,3;6,6"/>'),
            "polygon 1, has no area",
        ),
        ("cvat", IMAGE.format('<polygon label="a" points="1,2;3"/>'), "polygon 1, has corners"),
        ("cvat", IMAGE.format('<polygon label="a" points="1,2;3,4"/>'), "three corners"),
        (
            "cvat",
            IMAGE.format('<mask label="a" rle="9" left="0" top="0" width="99999" height="9"/>'),
            "mask 1, has run lengths",
        ),
        ("cvat", IMAGE.replace("60", "61").format(""), "image 1, says"),
        ("voc", EXTERNAL, "cannot be read as XML"),
        ("voc", VOC.format("2.png", ""), "2.png"),
        ("voc", VOC.format("/etc/passwd", ""), "for the name of an image"),
        ("voc", VOC.format("1.png", OBJECT.format("")), "object 1, needs"),
        (
            "voc",
            VOC.format(
                "1.png",
                OBJECT.format("<xmin>9</xmin><ymin>1</ymin><xmax>5</xmax><ymax>2</ymax>"),
            ),
            "object 1, has a box whose corners",
        ),
        ("labelme", "{}", "no imagePath"),
        ("labelme", labelme({}), "shapes must be a list"),
        ("labelme", labelme([7]), "shape 1, must be an object"),
        ("labelme", labelme([{"label": "a", "points": [[1, 2], [3]]}]), "shape 1, needs numbers"),
        ("labelme", labelme([{"points": [[1, 2]]}]), "shape 1, has no label"),
        (
            "labelme",
            labelme([{"label": "a", "points": [1, 2, 3]}]),
            "shape 1, needs points as pairs",
        ),
        (
            "labelme",
            labelme([{"label": "a", "shape_type": "line", "points": [[1, 2], [3, 4]]}]),
            "shape 1, is a 'line'",
        ),
        (
            "labelme",
            labelme([{"label": "a", "shape_type": "rectangle", "points": [[1, 2], [9, 2]]}]),
            "shape 1, has no area",
        ),
        (
            "labelme",
            labelme(
                [{"label": "a", "shape_type": "mask", "points": [[1, 2], [3, 4]], "mask": "x"}]
            ),
            "shape 1, has a mask that cannot",
        ),
        (
            "labelme",
            labelme([{"label": "a", "shape_type": "mask", "points": [[0, 0]] * 2, "mask": WIDE}]),
            "shape 1, has a mask that cannot be read: it has 61 x 2 pixels",
        ),
        ("labelme", labelme([], imageHeight=41), "says"),
        ("labelme", labelme([], imagePath="../.."), "for the name of an image"),
        ("labelstudio", "{}", "must be a list"),
        ("labelstudio", task([], data={}), "task 1, data has neither"),
        ("labelstudio", task([], data={"file_name": "../1.png"}), "task 1, has '../1.png'"),
        ("labelstudio", task([], data={"image": "http://[/1.png"}), "no address"),
        ("labelstudio", task([5]), "task 1, result 1, must be an object"),
        ("labelstudio", task([{"type": "rectanglelabels"}]), "result 1, rectanglelabels must"),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["a"]}}]),
            "result 1, needs",
        ),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "value": {**LS_BOX, "rotation": [1]}}]),
            "result 1, needs finite numbers",
        ),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "value": {**LS_BOX, "x": [1], "y": [1]}}]),
            "result 1, needs finite numbers",
        ),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "value": {**LS_BOX, "width": 0}}]),
            "result 1, has no area",
        ),
        ("labelstudio", task([{"type": "brushlabels", "value": {"rle": [1]}}]), "export brush"),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "image_rotation": 90, "value": LS_BOX}]),
            "result 1, was drawn in an image that had been turned",
        ),
        (
            "labelstudio",
            task([{"type": "polygonlabels", "value": {"points": [1], "polygonlabels": ["a"]}}]),
            "result 1, needs points as pairs",
        ),
        (
            "labelstudio",
            task([{"type": "rectanglelabels", "original_width": 9, "value": {}}]),
            "result 1, was drawn in an image of",
        ),
    ],
)
def test_malformed_files_are_named_with_the_place(
    format: str, text: str, place: str, blank: Path
) -> None:
    suffix = "xml" if format in ("cvat", "voc") else "json"
    with pytest.raises(ImageReadError, match=place) as caught:
        imported(text, f"drawn.{suffix}", format, blank)
    assert f"drawn.{suffix}" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("2 0.5 0.5 0.1 0.1", "line 2, has the class '2'"),
        ("x 0.5 0.5 0.1 0.1", "line 2, has the class 'x'"),
        ("0 0.5 0.5 0.1 nan", "line 2, needs finite"),
        ("0 0.5 0.5 a 0.1", "line 2, needs numbers"),
        ("0 0.5 0.5 0.1", "line 2, has 3 numbers"),
        ("0 1 2 3 4 5 6 7", "line 2, has 7 numbers"),
        ("0", "line 2, needs"),
        ("0 0.5 0.5 0 0.1", "line 2, has no area"),
        ("0 9 9 0.1 0.1", "line 2, reaches .* outside of its image"),
    ],
)
def test_malformed_lines_are_named(line: str, place: str, blank: Path) -> None:
    folder = blank.parent / "set"
    (folder / "labels").mkdir(parents=True)
    (folder / "classes.txt").write_text("dent\n")
    (folder / "labels" / "1.txt").write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(ImageReadError, match=place) as caught:
        import_annotations(folder, "yolo", blank)
    assert "1.txt" in str(caught.value)


@pytest.mark.parametrize(
    "table",
    [
        "names: !!python/object/apply:os.getcwd []",
        *("names: 5", "{", "a: [", "[]", "names: [' ']", "names: 2001-99-99", "names: !!int _"),
    ],
)
def test_malformed_tables_of_classes_are_named(table: str, blank: Path) -> None:
    folder = blank.parent / "set"
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text(table)
    (folder / "labels" / "1.txt").write_text("")
    with pytest.raises(ImageReadError, match=r"data\.yaml"):
        import_annotations(folder, "yolo", blank)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_read_or_refused(
    format: str, drafts: list[Localization], root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_annotations(drafts, out, format)
    [file] = [out / name for name in files_of(out) if name in MAIN_FILES]
    whole, rng, n_refused = file.read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), size=2):
            damaged[place] = rng.choice(list(b'9-.e"<>[]{},;/ x\x00\xff'))
        file.write_bytes(damaged)
        try:
            data = import_annotations(out, format, root)
        except ImageReadError as error:
            assert file.name in str(error) or str(out) in str(error)
            n_refused += 1
        else:
            assert all(np.asarray(mask).any() for mask in data.masks if mask is not None)
    assert n_refused > 10


def test_what_is_not_there_is_named(blank: Path) -> None:
    for format in FORMATS:
        with pytest.raises(ImageReadError, match="does not exist: give"):
            import_annotations(blank / "no", format, blank)
        (blank.parent / "empty").mkdir(exist_ok=True)
        with pytest.raises(ImageReadError, match="empty"):
            import_annotations(blank.parent / "empty", format, blank)
    with pytest.raises(ValueError, match="format must be one of"):
        import_annotations(blank, "pdf", blank)
