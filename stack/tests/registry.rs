//! The fixture registry, asked by hand and by cargo itself.

use cratemill_stack::fixtures::{
    Registry, crates,
    registry::{Options, Requests},
};
use reqwest::{StatusCode, header};
use std::{fs, path::Path, process::Command};

async fn get(registry: &Registry, path: &str, headers: &[(header::HeaderName, &str)]) -> reqwest::Response {
    let base = registry.index_url().replace("sparse+", "").replace("/index/", "");
    let mut request = reqwest::Client::new().get(format!("{base}{path}"));
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    request.send().await.expect("the registry answers")
}

#[tokio::test]
async fn an_entry_is_sent_again_only_when_it_changed() {
    let registry = Registry::start(Options::default()).await.unwrap();
    registry.publish(&crates::yanked("0.1.0").unwrap()).unwrap();
    let path = "/index/ya/nk/yanked-bin";
    let first = get(&registry, path, &[]).await;
    let etag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
    let modified = first.headers()[header::LAST_MODIFIED].to_str().unwrap().to_owned();
    assert!(modified.ends_with(" GMT"), "{modified}");
    for condition in [(header::IF_NONE_MATCH, etag.as_str()), (header::IF_MODIFIED_SINCE, modified.as_str())]
    {
        assert_eq!(get(&registry, path, &[condition]).await.status(), StatusCode::NOT_MODIFIED);
    }
    registry.yank("yanked-bin", "0.1.0", true).unwrap();
    let changed = get(&registry, path, &[(header::IF_NONE_MATCH, &etag)]).await;
    assert!(changed.text().await.unwrap().contains("\"yanked\":true"));
    assert_eq!(registry.requests(), Requests { entries: 2, not_modified: 2, ..Default::default() });
    assert!(registry.yank("yanked-bin", "9.9.9", true).is_err());
}

#[tokio::test]
async fn a_private_registry_wants_its_token_for_everything() {
    let options = Options { token: Some("secret".into()), markers: true, address: None };
    let registry = Registry::start(options).await.unwrap();
    let sha256 = registry.publish(&crates::hello_bin("0.1.0").unwrap()).unwrap();
    let download = format!("/dl/he/ll/hello-bin/{sha256}/hello-bin-0.1.0.crate");
    for path in ["/index/config.json", "/index/he/ll/hello-bin", &download] {
        assert_eq!(get(&registry, path, &[]).await.status(), StatusCode::UNAUTHORIZED, "{path}");
        let answer = get(&registry, path, &[(header::AUTHORIZATION, "secret")]).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(registry.requests().refused, 3);
}

/// What a builder does: another registry stands in for cargo's default one.
#[tokio::test]
async fn cargo_builds_a_crate_with_a_c_dependency_from_it() {
    let registry = Registry::start(Options::default()).await.unwrap();
    registry.publish_cached("cc").unwrap();
    let package = crates::with_c_dep("0.1.0").unwrap();
    registry.publish(&package).unwrap();
    let dir = tempfile::tempdir().unwrap();
    unpack(&package.pack().unwrap(), dir.path());
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let config = format!(
        "[source.crates-io]\nreplace-with = \"fixture\"\n[source.fixture]\nregistry = \"{}\"\n",
        registry.index_url()
    );
    fs::write(home.join("config.toml"), config).unwrap();
    let root = dir.path().join("native-bin-0.1.0");
    let command = move || {
        let target = root.join("target");
        let output = Command::new("cargo")
            .args(["run", "--quiet"])
            .current_dir(&root)
            .env("CARGO_HOME", home)
            .env("CARGO_TARGET_DIR", target)
            .output();
        output.unwrap()
    };
    let output = tokio::task::spawn_blocking(command).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "42\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(registry.requests().downloads >= 2, "cc and what it depends on");
}

#[tokio::test]
async fn the_index_can_lie_about_bytes() {
    let registry = Registry::start(Options::default()).await.unwrap();
    registry.publish(&crates::lib_only("0.1.0").unwrap()).unwrap();
    registry.set_checksum("lib-only", "0.1.0", &"0".repeat(64)).unwrap();
    let entry = get(&registry, "/index/li/b-/lib-only", &[]).await.text().await.unwrap();
    assert!(entry.contains(&"0".repeat(64)));
    assert_eq!(get(&registry, "/dl/lib-only/0.1.0/download", &[]).await.status(), StatusCode::OK);
    assert_eq!(get(&registry, "/dl/lib-only/0.2.0/download", &[]).await.status(), StatusCode::NOT_FOUND);
}

fn unpack(archive: &[u8], into: &Path) {
    tar::Archive::new(flate2::read::GzDecoder::new(archive)).unpack(into).expect("an archive of ours");
}
