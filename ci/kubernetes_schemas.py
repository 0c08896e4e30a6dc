"""JSON schemas for kubeconform, one whole file for each kind of resource.

python ci/kubernetes_schemas.py FOLDER KUBERNETES_SCHEMAS DEFINITION.yaml…

KUBERNETES_SCHEMAS is a folder of the package kubernetes-validate, each DEFINITION a CustomResourceDefinition.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml


def inlined(schema: Any, definitions: dict[str, Any], within: tuple[str, ...] = ()) -> Any:
    """The schema with what it refers to in place; where a definition holds itself, anything goes."""
    if isinstance(schema, list):
        return [inlined(item, definitions, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        name = schema["$ref"].rsplit("/", 1)[1]
        return {} if name in within else inlined(definitions[name], definitions, (*within, name))
    return {key: inlined(value, definitions, within) for key, value in schema.items() if key != "description"}


def strict(schema: Any) -> Any:
    """A custom resource's schema without what only the API server knows; unknown fields are refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {key: strict(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended:
        result["additionalProperties"] = False
    return result


def custom_resources(definition: Path) -> dict[str, Any]:
    """File name and schema of each version that a CustomResourceDefinition has."""
    spec = yaml.safe_load(definition.read_text(encoding="utf-8"))["spec"]
    kind, group = spec["names"]["kind"].lower(), spec["group"].split(".")[0]
    schemas = {}
    for version in spec["versions"]:
        schema = strict(version["schema"]["openAPIV3Schema"])
        # Every resource has these; definitions leave them to the API server.
        always = {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
        }
        schema["properties"] |= always
        schemas[f"{kind}-{group}-{version['name']}.json"] = schema
    return schemas


def main() -> None:
    """Writes the files."""
    out, kubernetes, *crds = map(Path, sys.argv[1:])
    definitions = json.loads((kubernetes / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    schemas = {}
    for path in kubernetes.glob("*-*.json"):
        schema = json.loads(path.read_text(encoding="utf-8"))
        # A resource, neither a part nor a list of them.
        if "metadata" in schema.get("properties", ()) and "items" not in schema["properties"]:
            schemas[path.name] = inlined(schema, definitions)
    for definition in crds:
        schemas |= custom_resources(definition)
    out.mkdir()
    for name, schema in schemas.items():
        (out / name).write_text(json.dumps(schema), encoding="utf-8")


if __name__ == "__main__":
    main()
