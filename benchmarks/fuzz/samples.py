"""Sound inputs of the targets in `benchmarks.fuzz.parsers`, by target."""

# ruff: noqa: E501
from __future__ import annotations

SAMPLES: dict[str, tuple[bytes, ...]] = {
    "boxes": (
        b"hsil 1 is located at <region>88.97 117.96 176.63 286.95</region>. hsil 2 is located at <region>1 2 3 4</region>.",
        b"<|object_ref_start|>cell<|object_ref_end|><|box_start|>(12,40),(300,480)<|box_end|>",
        b'```json\n[{"bbox_2d": [12, 40, 300, 480], "label": "hsil"}, {"bbox_2d": [1, 2, 3, 4], "label": "l\\u0073il"}]\n```',
        b"[0.1, 0.2, 0.35, 0.48]",
        b"<loc0001><loc0100><loc0400><loc1023> hsil ; <loc0001><loc0002><loc0030><loc0040> lsil",
        b"<ref>hsil</ref><box>[[10, 20, 300, 400], [1, 2, 3, 4]]</box>",
        b"There are no hsil cells.",
        b"I cannot see it.",
        b"<think>The nucleus is large. Boxes: [1, 2, 3, 4]</think>hsil is located at <region>10 20 30 40</region>.",
    ),
    "choice": (
        b"B",
        b"The answer is **B**.",
        b"A. a cluster of squamous cells",
        b"It is not A, so B.",
        b"A cluster of cells",
        b"<think>A or B?</think>\n\\boxed{C}",
        "答案：C。".encode(),
        b"Neither A nor B; LSIL.",
        b"(D) a<|im_end|>",
    ),
    "question": (
        b"Locate all hsil.",
        b"how many lsil cells are there?",
        b"Is this abnormal?",
        "有多少 hsil?".encode(),
    ),
    "reply": (
        b'{"choices": [{"message": {"content": "A"}, "finish_reason": "stop", "logprobs": {"content": [{"token": "A", '
        b'"logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.5}]}]}}], "usage": '
        b'{"prompt_tokens": 300, "completion_tokens": 1}, "model": "m"}',
        b'{"choices": [{"delta": {"content": "hsil"}, "finish_reason": null, "logprobs": null}], "usage": null}',
    ),
    "narrative": (b"1. HSIL cells are seen [f0001, t000042].\n+ Background is clean [t000001]\n2. No organisms.",),
    "json": (b'{"a": [1, 2.5e3, null, true, "\\ud83d\\ude00"], "b": {"c": {}}}', b"[[[[[]]]]]", b'{"a": NaN}'),
    "yaml": (
        b"a: [1, 2.5, ~]\nb: &x {c: 1}\nd: *x\n",
        b"- !!binary aGVsbG8=\n- 2001-12-14\n- 0x1F\n- 1:30\n<<: {a: 1}",
    ),
    "geojson": (
        b'{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": '
        b'[[[1, 2], [30, 2], [30, 40], [1, 2]]]}, "properties": {"objectType": "annotation", "classification": '
        b'{"name": "hsil", "color": [1, 2, 3]}}}]}',
        b'[{"type": "Feature", "geometry": {"type": "MultiPoint", "coordinates": [[1, 2]]}, "properties": '
        b'{"classification": {"names": ["lsil", "Positive"]}}}]',
    ),
    "coco": (
        b'{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [{"id": 1, "image_id": 1, '
        b'"category_id": 1, "bbox": [1, 2, 3, 4]}], "categories": [{"id": 1, "name": "hsil"}]}',
    ),
    "voc": (
        b"<annotation><filename>a.png</filename><size><width>256</width><height>256</height></size><object><name>hsil</name>"
        b"<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>",
    ),
    "table": (b"image,patient\na.png,p1\nb.png,p2\n", b'sep=;\r\nimage;caption\r\n"a";"b""c"\r\n'),
    "manifest": (
        b"sample_id,image_path,mpp,label,patient,specimen,site\ns0,slides/s0.svs,0.25,abnormal,p0,cervix,A\n",
        b"\xef\xbb\xbfsep=;\nimage_path;specimen_id\na.png;x\nb.png;x\n",
    ),
    "dataset-info": (
        b'{"cytology_test": {"file_name": "demo.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages", '
        b'"images": "images"}, "tags": {"role_tag": "role", "content_tag": "content"}}}',
    ),
    "predictions": (
        b'{"prompt": "<image>Locate all hsil.", "predict": "none", '
        b'"label": "hsil 1 is located at <region>1 2 3 4</region>."}\n',
    ),
    "settings": (
        b"specimen: cervix\nmpp: 0.5\ntile-px: 256\ntop_k: 24\nancillary:\n  - HPV 16 positive\nformat: pdf\n",
    ),
    "system": (b"extends: cervix-tbs2014\ncode: own\nname: Own\nversion: '1'\nspecimens: [own]\nmpp: 0.4\n",),
    "dialect": (b"extends: qwen2.5-vl\nname: own\nimage: {side: 448}\nprompts: {ground: 'Find {target}.'}\n",),
    "ome": (
        b'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" Name="a"><Pixels SizeX="9" '
        b'SizeY="9" SizeC="3" SizeZ="1" SizeT="1" Type="uint8" PhysicalSizeX="0.5" PhysicalSizeXUnit="um" DimensionOrder="XYCZT">'
        b'<Channel Color="-1" SamplesPerPixel="1"/><TiffData FirstC="0" IFD="0" PlaneCount="3"/></Pixels></Image></OME>',
    ),
    "tiff": (
        b"II*\0\x08\0\0\0\x05\0\0\x01\x04\0\x01\0\0\0\0\x02\0\0\x01\x01\x04\0\x01\0\0\0\0\x02\0\0\x42\x01"
        b"\x04\0\x01\0\0\0\0\x01\0\0\x43\x01\x04\0\x01\0\0\0\0\x01\0\0\x44\x01\x04\0\x04\0\0\0\x50\0\0\0\0\0\0\0"
        + bytes(32),
    ),
    "ancillary": (b"HPV 16: positive\nnote: 3\n",),
}
