"""The OpenAPI document, made from the table of endpoints and the same bodies that parse requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from kea.server.endpoint import Access, Endpoint
from kea.server.errors import TOO_LARGE, WIRE
from kea.server.sse import EVENT_STREAM
from kea.server.wire.base import JSON_TYPE

TITLE = "Kea"
REF = "#/components/schemas/{model}"
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
SECURITY = {Access.OPEN: [], Access.KEY: [{"key": []}, {}], Access.SESSION: [{}]}
NO_NAME = re.compile(r"[^a-z0-9]+", re.IGNORECASE)
PARAMETER = re.compile(r"{(\w+)(?::\w+)?}")


def create_document(endpoints: Iterable[Endpoint], version: str) -> dict[str, Any]:
    """Return the document of these endpoints."""
    endpoints = list(endpoints)
    names, schemas = _schemas(endpoints)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        operations = paths.setdefault(PARAMETER.sub(r"{\1}", endpoint.path), {})
        operations[endpoint.method.lower()] = _operation(endpoint, names)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": ERROR_SCHEMA},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _schemas(endpoints: Iterable[Endpoint]) -> tuple[Mapping[Any, str], dict[str, Any]]:
    """Return the name of every body's schema, and the schemas."""
    bodies = {endpoint.body for endpoint in endpoints if endpoint.body is not None}
    replies = {endpoint.reply for endpoint in endpoints if endpoint.reply is not None}
    wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((model, "validation") for model in sorted(bodies, key=lambda model: model.__name__)),
        *((model, "serialization") for model in sorted(replies, key=lambda model: model.__name__)),
    ]
    refs, root = models_json_schema(wanted, ref_template=REF)
    return {key: str(value["$ref"]).rpartition("/")[2] for key, value in refs.items()}, root.get("$defs", {})


def _operation(endpoint: Endpoint, names: Mapping[Any, str]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": NO_NAME.sub("_", f"{endpoint.method.lower()}{endpoint.path}").strip("_"),
        "parameters": [*_path_parameters(endpoint.path), *map(_query_parameter, endpoint.query)],
        "responses": {str(endpoint.status): _success(endpoint, names), **_failures()},
        "security": SECURITY[endpoint.access],
    }
    if endpoint.body is not None:
        schema = {"$ref": REF.format(model=names[endpoint.body, "validation"])}
        needed = any(field.is_required() for field in endpoint.body.model_fields.values())
        operation["requestBody"] = {"required": needed, "content": {JSON_TYPE: {"schema": schema}}}
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {"name": match[1], "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for match in PARAMETER.finditer(path)
    ]


def _query_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}


def _success(endpoint: Endpoint, names: Mapping[Any, str]) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    if endpoint.reply is not None:
        schema = {"$ref": REF.format(model=names[endpoint.reply, "serialization"])}
    content: dict[str, Any] = {endpoint.reply_type.partition(";")[0]: {"schema": schema}}
    if endpoint.streams:
        content[EVENT_STREAM.partition(";")[0]] = {"schema": {"type": "string"}}
    return {"description": "Done.", "content": content}


def _failures() -> dict[str, Any]:
    content = {JSON_TYPE: {"schema": {"$ref": REF.format(model="Error")}}}
    statuses = sorted({wire.status for wire in (*WIRE.values(), TOO_LARGE)})
    return {str(status): {"description": "An error.", "content": content} for status in statuses}
