//! What a crate cannot reach. Every attempt is one that works outside the sandbox: the tests check that too.

use crate::{fixture, lab::Lab};
use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
};

/// Nobody has connected; whoever does is seen.
fn assert_untouched(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "the sandbox reached the host");
    let address = listener.local_addr().unwrap();
    let _host = TcpStream::connect(address).unwrap();
    listener.set_nonblocking(false).unwrap();
    listener.accept().unwrap();
}

#[tokio::test]
async fn a_build_reaches_no_network_no_socket_no_key_and_no_process_of_the_host() {
    let mut lab = Lab::new().await;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = lab.folder.path().join("socket");
    let _unix = UnixListener::bind(&socket).unwrap();
    UnixStream::connect(&socket).unwrap();
    let key = lab.folder.path().join("key");
    std::fs::write(&key, "PRIVATE").unwrap();
    let body = format!(
        r#"
        let mut escapes: Vec<String> = Vec::new();
        if std::net::TcpStream::connect("{tcp}").is_ok() {{ escapes.push("network".into()); }}
        if std::os::unix::net::UnixStream::connect("{socket}").is_ok() {{ escapes.push("socket".into()); }}
        for path in ["{key}", "/etc/shadow", "/root", "/var/run", "/run", "/sys/fs/cgroup", "/home/builder/.ssh"] {{
            if std::fs::metadata(path).is_ok() {{ escapes.push(path.into()); }}
        }}
        for entry in std::fs::read_dir("/proc").unwrap() {{
            let path = entry.unwrap().path();
            let Ok(command) = std::fs::read_to_string(path.join("cmdline")) else {{ continue }};
            if command.contains("nextest") || command.contains("deps/builder") {{ escapes.push(command); }}
        }}
        for path in ["/source/demo-0.1.0/x", "/cargo/x", "/cargo/config.toml", "/x", "/usr/x", "/toolchain/x", "/dev/x"] {{
            if std::fs::write(path, "x").is_ok() {{ escapes.push(format!("write {{path}}")); }}
        }}
        for (name, value) in std::env::vars() {{
            if name.starts_with("NEXTEST") || name.contains("SSH") || value.contains("PRIVATE") {{ escapes.push(name); }}
        }}
        if std::process::Command::new("/usr/bin/unshare").args(["-Ur", "true"]).status().is_ok_and(|s| s.success()) {{
            escapes.push("a user namespace".into());
        }}
        assert!(escapes.is_empty(), "ESCAPED: {{escapes:?}}");
        "#,
        tcp = tcp.local_addr().unwrap(),
        socket = socket.display(),
        key = key.display(),
    );
    let run = lab.build(fixture::with_build_script(&body)).await;
    run.assert_succeeded();
    assert_untouched(&tcp);
}

#[tokio::test]
async fn cargo_settings_in_a_crate_run_nothing() {
    let mut lab = Lab::new().await;
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let evil = format!("#!/bin/bash\necho EVIL >&2\nexec 3<>/dev/tcp/{}/{}\n", address.ip(), address.port());
    let config = "[build]\nrustc = \"/source/demo-0.1.0/evil.sh\"\nrustc-wrapper = \"/source/demo-0.1.0/evil.sh\"\n\
                  [registry]\nglobal-credential-providers = [\"/source/demo-0.1.0/evil.sh\"]\n\
                  [env]\nPATH = { value = \"/source/demo-0.1.0\", force = true }\n";
    let toolchain = "[toolchain]\nchannel = \"nightly-1999-01-01\"\n";
    let mut archive = fixture::Archive::default();
    let files = [
        ("Cargo.toml", "[package]\nname = \"demo\"\nversion = \"0.1.0\"\n"),
        ("src/main.rs", "fn main() {}"),
        ("evil.sh", &evil),
        (".cargo/config.toml", config),
        ("rust-toolchain.toml", toolchain),
    ];
    for (path, text) in files {
        archive.entry(tar::EntryType::Regular, &format!("demo-0.1.0/{path}"), text.as_bytes());
    }
    let run = lab.build(archive.finish()).await;
    run.assert_succeeded();
    assert!(!run.log.contains("EVIL"), "{}", run.log);
    assert_untouched(&tcp);
}

#[tokio::test]
async fn a_binary_that_is_a_link_is_not_packed() {
    let mut lab = Lab::new().await;
    let secret = lab.folder.path().join("key");
    std::fs::write(&secret, "PRIVATE").unwrap();
    // Runs beside the build and swaps the binary for a link as soon as it is there.
    let body = format!(
        r#"
        let out = std::path::PathBuf::from(std::env::var("OUT_DIR").unwrap());
        let release = out.ancestors().nth(3).unwrap();
        let binary = release.join("demo");
        std::fs::create_dir_all(release.join("deps")).unwrap();
        _ = std::os::unix::fs::symlink("{}", &binary);
        assert!(std::fs::symlink_metadata(&binary).unwrap().is_symlink());
        "#,
        secret.display()
    );
    let run = lab.build(fixture::with_build_script(&body)).await;
    // Cargo puts the binary in the place of the link; that we follow none is tested where binaries are packed.
    run.assert_succeeded();
    let name = format!("demo-{}-v0.1.0.tar.gz", lab.context.sandbox.toolchain.host);
    let tarball = lab.service.uploaded(&name).unwrap();
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&tarball[..]), &mut text).unwrap();
    assert!(text.windows(4).any(|window| window == b"\x7fELF"), "{}", run.log);
    assert!(!text.windows(7).any(|window| window == b"PRIVATE"), "{}", run.log);
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "PRIVATE");
}
