//! The OpenAPI document describes what is there, and a tool that is not ours understands it.

use crate::support::Node;
use cratemill_api::routes;
use cratemill_store::PgPool;
use serde_json::Value;
use std::{io::Write, process::Stdio};

fn document() -> Value {
    serde_json::from_str(&routes::api().1.to_json().unwrap()).unwrap()
}

fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = document();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{}", found.len());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn operators_routes_say_so_and_ids_are_unique() {
    let document = document();
    let (mut ids, mut operators) = (Vec::new(), 0);
    for operations in document["paths"].as_object().unwrap().values() {
        for operation in operations.as_object().unwrap().values() {
            ids.push(operation["operationId"].as_str().unwrap().to_owned());
            operators += usize::from(operation["security"][0].get("operator").is_some());
        }
    }
    assert_eq!((ids.len(), operators), (17, 5), "{ids:?}");
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 17, "{ids:?}");
}

/// A described route answers something other than "there is nothing here".
#[sqlx::test(migrations = "../migrations")]
async fn every_described_route_exists(pool: PgPool) {
    let node = Node::alone(pool).await;
    let served = node.get("/api/v1/openapi.json").await;
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    for (path, operations) in served.json()["paths"].as_object().unwrap() {
        let mut concrete = path.clone();
        while let (Some(start), Some(end)) = (concrete.find('{'), concrete.find('}')) {
            concrete.replace_range(start..=end, "1");
        }
        for method in operations.as_object().unwrap().keys() {
            let answer = node.ask(&method.to_uppercase(), &concrete, &[], None).await;
            assert!(
                answer.status != 405 && !answer.text().contains("there is nothing at"),
                "{method} {path}"
            );
        }
    }
}

/// With the PyPI package openapi-spec-validator, where it is installed.
#[test]
fn a_validator_accepts_it() {
    let script = "import sys, json\n\
                  try:\n    from openapi_spec_validator import validate\n\
                  except ImportError:\n    sys.exit(77)\n\
                  validate(json.load(sys.stdin))";
    let document = document().to_string();
    let python = std::process::Command::new("python3").args(["-c", script]).stdin(Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    // Without the package it ends before it has read all.
    _ = python.stdin.take().unwrap().write_all(document.as_bytes());
    let status = python.wait().unwrap();
    if status.code() == Some(77) {
        eprintln!("skipped: openapi-spec-validator is not installed");
        return;
    }
    assert!(status.success());
}
