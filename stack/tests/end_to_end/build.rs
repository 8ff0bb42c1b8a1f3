//! From a registry to verified, counted downloads.

use super::{
    events::Viewer,
    scene::{Scene, until},
};
use cratemill_stack::{
    cluster::Options, fixtures::Registry, fixtures::crates, fixtures::registry, services::Role,
};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{fs, io::Read as _, process::Command};

/// The crates that a watching cluster builds by itself, and what their binaries print.
const BINARIES: [(&str, &str); 4] = [
    ("hello-bin", "hello-bin 1.2.3\n"),
    ("member-bin", "member-bin 0.1.0\n"),
    ("script-bin", "generated\n"),
    ("native-bin", "42\n"),
];

#[tokio::test(flavor = "multi_thread")]
async fn watched_crates_become_downloads() {
    let registry = Registry::start(registry::Options::default()).await.unwrap();
    registry.publish_cached("cc").unwrap();
    for package in [
        crates::hello_bin("1.2.3"),
        crates::lib_only("0.1.0"),
        crates::workspace_member("0.1.0"),
        crates::with_build_script("0.1.0"),
        crates::with_c_dep("0.1.0"),
        crates::yanked("0.1.0"),
    ] {
        registry.publish(&package.unwrap()).unwrap();
    }
    registry.yank("yanked-bin", "0.1.0", true).unwrap();
    let watched = "hello-bin,lib-only,member-bin,script-bin,native-bin,yanked-bin";
    let options = Options { api: 2, slots: 2, ..Options::default() }.with_env(
        Role::Dispatcher,
        "WATCH_CRATES",
        watched,
    );
    let scene = Scene::with_registry(registry, options).await;

    for (krate, prints) in BINARIES {
        let end = scene.viewer(&["builds"]).await.job_end(krate, "tarball").await;
        assert_eq!(end["state"], "succeeded", "{krate}: {}", scene.log(&end["job"]).await);
        let job = scene.client.get(&format!("/api/v1/jobs/{}", end["job"])).await.unwrap();
        assert_eq!(job["attempt"], 1, "nobody gives the builder more than it has slots for: {job}");
        let body = scene.get(&path(&scene, krate, "latest")).await.bytes().await.unwrap();
        assert_eq!(run_binary(&body, krate), prints);
    }
    let library = scene.viewer(&["builds"]).await.job_end("lib-only", "metadata").await;
    assert_eq!(library["state"], "succeeded");
    let jobs = scene.client.list("/api/v1/jobs?crate=lib-only").await.unwrap();
    assert_eq!(jobs.len(), 1, "a library has nothing to install: {jobs:?}");
    assert_eq!(scene.client.list("/api/v1/jobs?crate=yanked-bin").await.unwrap().len(), 0);

    logs_are_the_same_everywhere(&scene).await;
    downloads_follow_http(&scene).await;
    a_signature_verifies_with_ssh_keygen(&scene).await;
    yanks_and_new_versions_are_noticed(&scene).await;
    scene.cluster.stop().await.unwrap();
}

fn path(scene: &Scene, krate: &str, version: &str) -> String {
    format!("/api/v1/crates/{krate}/{version}/{}/tarball", scene.target())
}

fn run_binary(tarball: &[u8], krate: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    tar::Archive::new(flate2::read::GzDecoder::new(tarball)).unpack(folder.path()).unwrap();
    let root = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
    assert!(root.file_name().to_str().unwrap().starts_with(&format!("{krate}-")), "{root:?}");
    let output = Command::new(root.path().join(krate)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What viewers saw, what the API says, and what the archive holds is one text.
async fn logs_are_the_same_everywhere(scene: &Scene) {
    let end = scene.viewer(&["builds"]).await.job_end("script-bin", "tarball").await;
    let job = &end["job"];
    let topic = format!("job.{job}.log");
    let mut viewer = Viewer::open(&scene.cluster.lb_url(), &[&topic], None).await;
    let mut seen = String::new();
    loop {
        let frame = viewer.next().await;
        match frame.event.as_str() {
            "log" => {
                assert_eq!(frame.data["offset"], seen.len(), "no gap and no repeat");
                seen.push_str(frame.data["text"].as_str().unwrap());
                // Every viewer may lose its connection after any event, and goes on with its id.
                viewer = Viewer::open(&scene.cluster.lb_url(), &[&topic], Some(&frame.id)).await;
            }
            "end" if frame.data["final"] == true => break,
            "stage" => {}
            _ => panic!("one attempt, whole: {frame:?}"),
        }
    }
    assert!(seen.contains("Compiling script-bin"), "{seen}");
    assert_eq!(scene.log(job).await, seen);
    let archived = until("the archive of the log", async || {
        let url = scene.cluster.postgres.url();
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let object: Option<String> = sqlx::query_scalar(
            "SELECT log_object FROM all_attempts WHERE job_id = $1 ORDER BY attempt DESC LIMIT 1",
        )
        .bind(job.as_i64())
        .fetch_one(&pool)
        .await
        .unwrap();
        object
    })
    .await;
    assert_eq!(scene.log(job).await, seen, "the same bytes from {archived}");
}

async fn downloads_follow_http(scene: &Scene) {
    let exact = path(scene, "hello-bin", "1.2.3");
    let counted = |body: &Value| body["total"].as_i64().unwrap();
    let of_crate = "/api/v1/crates/hello-bin/downloads";
    let before = until("the first download's count", async || {
        let body = scene.client.get(of_crate).await.unwrap();
        (counted(&body) >= 1).then(|| counted(&body))
    })
    .await;

    let first = scene.get(&exact).await;
    assert_eq!(first.status(), 200);
    let etag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert!(first.headers()["cache-control"].to_str().unwrap().contains("immutable"));
    assert!(!first.headers().contains_key("content-encoding"), "an archive is sent as it is");
    let body = first.bytes().await.unwrap();
    let sha256 = hex::encode(Sha256::digest(&body));
    assert_eq!(etag, format!("\"{sha256}\""));
    let sums = scene.get(&format!("{exact}.sha256")).await.text().await.unwrap();
    assert_eq!(sums, format!("{sha256}  hello-bin-{}-v1.2.3.tar.gz\n", scene.target()));

    let unchanged = scene.request(Method::GET, &exact, &[("if-none-match", &etag)]).await;
    assert_eq!(unchanged.status(), 304);
    let head = scene.request(Method::HEAD, &exact, &[]).await;
    assert_eq!(head.headers()["content-length"], body.len().to_string());
    let part = scene.request(Method::GET, &exact, &[("range", "bytes=2-5")]).await;
    assert_eq!(part.status(), 206);
    assert_eq!(part.headers()["content-range"], format!("bytes 2-5/{}", body.len()));
    assert_eq!(part.bytes().await.unwrap(), body.slice(2..6));
    let beyond = scene.request(Method::GET, &exact, &[("range", "bytes=99999999-")]).await;
    assert_eq!(beyond.status(), 416);

    let body = until("the second download's count", async || {
        let body = scene.client.get(of_crate).await.unwrap();
        (counted(&body) > before).then_some(body)
    })
    .await;
    assert_eq!(counted(&body), before + 1, "only the whole download counts: {body}");
    let days = body["items"].as_array().unwrap();
    assert_eq!(days.iter().map(|day| day["count"].as_i64().unwrap()).sum::<i64>(), before + 1);
}

async fn a_signature_verifies_with_ssh_keygen(scene: &Scene) {
    let folder = tempfile::tempdir().unwrap();
    let exact = path(scene, "hello-bin", "1.2.3");
    let manifest = scene.get(&format!("{exact}.manifest")).await.text().await.unwrap();
    let signature = scene.get(&format!("{exact}.sig")).await.text().await.unwrap();
    let key = scene.cluster.builder_key(1).unwrap();
    fs::write(folder.path().join("signers"), format!("builder {}\n", key.public)).unwrap();
    fs::write(folder.path().join("sig"), signature).unwrap();
    let verify = |text: &str| {
        fs::write(folder.path().join("manifest"), text).unwrap();
        let input = fs::File::open(folder.path().join("manifest")).unwrap();
        let arguments =
            ["-Y", "verify", "-f", "signers", "-I", "builder", "-n", "cratemill-artifact@v1", "-s", "sig"];
        Command::new("ssh-keygen").args(arguments).current_dir(folder.path()).stdin(input).output().unwrap()
    };
    let good = verify(&manifest);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!verify(&manifest.replace("hello-bin", "jello-bin")).status.success());
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["crate"], "hello-bin");
    assert_eq!(manifest["artifacts"].as_array().unwrap().len(), 1);
}

async fn yanks_and_new_versions_are_noticed(scene: &Scene) {
    let mut viewer = Viewer::open(&scene.cluster.lb_url(), &["crate.hello-bin"], None).await;
    scene.registry.publish(&crates::hello_bin("1.3.0").unwrap()).unwrap();
    scene.registry.yank("hello-bin", "1.2.3", true).unwrap();
    let yanked = viewer.wait_for(|frame| frame.event == "version" && frame.data["change"] == "yanked").await;
    assert_eq!(yanked.data["version"], "1.2.3");
    let end = viewer.job_end("hello-bin", "tarball").await;
    assert_eq!((&end["version"], &end["state"]), (&json!("1.3.0"), &json!("succeeded")));
    let latest = scene.get(&path(scene, "hello-bin", "latest")).await.bytes().await.unwrap();
    assert_eq!(run_binary(&latest, "hello-bin"), "hello-bin 1.3.0\n");
    let yanked = scene.get(&path(scene, "hello-bin", "1.2.3")).await;
    assert_eq!(yanked.status(), 200, "what was built stays");
    assert!(yanked.headers().contains_key("warning"), "{:?}", yanked.headers());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crate_that_nobody_watches_is_built_on_demand() {
    let options = Options { builder: 0, ..Options::default() };
    let mut scene = Scene::start(&[crates::hello_bin("1.0.0").unwrap()], options).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    let job = scene.enqueue("hello-bin", "metadata").await;
    assert_eq!(job["priority"], "on_demand");
    // Not before: what the discovery of the crate queues is this job only while it has not ended.
    scene.cluster.add_builder(None).await.unwrap();
    let metadata = viewer.job_end("hello-bin", "metadata").await;
    assert_eq!((&metadata["state"], &metadata["job"]), (&json!("succeeded"), &job["id"]));
    let tarball = viewer.job_end("hello-bin", "tarball").await;
    assert_eq!((&tarball["state"], &tarball["priority"]), (&json!("succeeded"), &json!("on_demand")));

    let mut body = Vec::new();
    let metadata = scene.get("/api/v1/crates/hello-bin/1.0.0/any/metadata").await.bytes().await.unwrap();
    metadata.as_ref().read_to_end(&mut body).unwrap();
    let metadata: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(metadata["packages"][0]["name"], "hello-bin");

    let unknown = json!({"crate": "no-such-crate", "version": "latest", "kind": "metadata"});
    let refused = scene.client.post("/api/v1/jobs", &unknown).await.unwrap_err();
    assert!(format!("{refused:#}").contains("404 Not Found"), "{refused:#}");
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_of_a_crate_are_the_same_bytes() {
    let scene = Scene::start(&[crates::with_build_script("0.1.0").unwrap()], Options::default()).await;
    let mut sums = Vec::new();
    let mut viewer = scene.viewer(&["builds"]).await;
    for _ in 0..2 {
        scene.enqueue("script-bin", "tarball").await;
        assert_eq!(viewer.job_end("script-bin", "tarball").await["state"], "succeeded");
        sums.push(
            scene.get(&format!("{}.sha256", path(&scene, "script-bin", "0.1.0"))).await.text().await.unwrap(),
        );
    }
    assert_eq!(sums[0], sums[1]);
    scene.cluster.stop().await.unwrap();
}

/// The builder gets the source through the service, with its job's token, and never sees the registry's.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_registry_keeps_its_token() {
    let token = "registry-token-of-this-test";
    let private = registry::Options { token: Some(token.into()), ..registry::Options::default() };
    let registry = Registry::start(private).await.unwrap();
    registry.publish(&crates::hello_bin("1.0.0").unwrap()).unwrap();
    let options = Options::default().with_env(Role::Dispatcher, "REGISTRY_TOKEN", token).with_env(
        Role::Api,
        "REGISTRY_TOKEN",
        token,
    );
    let scene = Scene::with_registry(registry, options).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    scene.enqueue("hello-bin", "metadata").await;
    let end = viewer.job_end("hello-bin", "tarball").await;
    assert_eq!(end["state"], "succeeded", "{}", scene.log(&end["job"]).await);
    let body = scene.get(&path(&scene, "hello-bin", "latest")).await.bytes().await.unwrap();
    assert_eq!(run_binary(&body, "hello-bin"), "hello-bin 1.0.0\n");
    assert!(!scene.log(&end["job"]).await.contains(token));
    scene.cluster.stop().await.unwrap();
}
