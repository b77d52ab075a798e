"""Reads OCSF events, one a line, and has the findings among them judged by py-ocsf-models, which is not ours."""

import collections
import json
import sys

from py_ocsf_models.events.findings.compliance_finding import ComplianceFinding
from py_ocsf_models.events.findings.detection_finding import DetectionFinding

MODELS = {2003: ComplianceFinding, 2004: DetectionFinding}
found = collections.Counter()
for line in sys.stdin:
    event = json.loads(line)
    found[event["class_uid"]] += 1
    if model := MODELS.get(event["class_uid"]):
        model.model_validate(event)
missing = set(MODELS) - set(found)
if missing:
    raise SystemExit(f"no event of class {missing} to judge")
print("accepted", ", ".join(f"{count} of class {class_uid}" for class_uid, count in sorted(found.items())))
