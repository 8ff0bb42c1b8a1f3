//! Crates that do not build, and what their authors get to see. The builder's own tests have one for each limit.

use super::scene::Scene;
use cratemill_stack::{
    cluster::Options,
    fixtures::{Package, crates},
    services::Role,
};
use serde_json::json;

pub(super) fn broken() -> Package {
    let manifest = "[package]\nedition = \"2024\"\nname = \"broken-bin\"\nversion = \"0.1.0\"\n";
    Package::new(manifest)
        .unwrap()
        .file("src/main.rs", "fn main() {\n    let answer: u32 = \"forty-two\";\n}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crate_that_does_not_compile_fails_once_and_says_why() {
    let scene = Scene::start(&[broken()], Options::default()).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    scene.enqueue("broken-bin", "tarball").await;
    let end = viewer.job_end("broken-bin", "tarball").await;
    assert_eq!(
        (&end["state"], &end["failure"], &end["attempt"]),
        (&json!("failed"), &json!("build"), &json!(1))
    );
    assert!(scene.log(&end["job"]).await.contains("mismatched types"));
    let job = scene.client.get(&format!("/api/v1/jobs/{}", end["job"])).await.unwrap();
    assert_eq!(job["failure"]["class"], "build");
    assert_eq!(job["attempts"].as_array().unwrap().len(), 1, "the crate's own failure is final");
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_rebuild_leaves_the_good_artifact() {
    let good = crates::hello_bin("1.0.0").unwrap();
    let scene = Scene::start(&[good], Options::default()).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    scene.enqueue("hello-bin", "tarball").await;
    assert_eq!(viewer.job_end("hello-bin", "tarball").await["state"], "succeeded");
    let path = format!("/api/v1/crates/hello-bin/1.0.0/{}/tarball", scene.target());
    let before = scene.get(&path).await.bytes().await.unwrap();

    // The registry now sends other bytes than its index promised.
    let other = crates::hello_bin("1.0.0").unwrap().file("src/extra.rs", "compile_error!();");
    let other = other.file("src/main.rs", "compile_error!(\"other bytes\");");
    let sha256 = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(
        crates::hello_bin("1.0.0").unwrap().pack().unwrap(),
    ));
    scene.registry.publish(&other).unwrap();
    scene.registry.set_checksum("hello-bin", "1.0.0", &sha256).unwrap();
    scene.enqueue("hello-bin", "tarball").await;
    let end = viewer.job_end("hello-bin", "tarball").await;
    assert_eq!(end["state"], "failed", "{end}");
    assert!(
        end["message"].as_str().unwrap().contains("sha256")
            || end["message"].as_str().unwrap().contains("checksum")
    );
    assert_eq!(scene.get(&path).await.bytes().await.unwrap(), before);
    scene.cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_service_reach_the_sandbox() {
    let manifest =
        "[package]\nedition = \"2024\"\nname = \"endless-bin\"\nversion = \"0.1.0\"\nbuild = \"build.rs\"\n";
    let endless = Package::new(manifest).unwrap().file("src/main.rs", "fn main() {}\n");
    let endless = endless.file("build.rs", "fn main() { loop { std::thread::park(); } }\n");
    let options = Options::default().with_env(Role::Dispatcher, "JOB_WALL_S", "5");
    let scene = Scene::start(&[endless], options).await;
    let mut viewer = scene.viewer(&["builds"]).await;
    scene.enqueue("endless-bin", "tarball").await;
    let end = viewer.job_end("endless-bin", "tarball").await;
    assert_eq!((&end["state"], &end["failure"]), (&json!("failed"), &json!("timeout")), "{end}");
    scene.cluster.stop().await.unwrap();
}
