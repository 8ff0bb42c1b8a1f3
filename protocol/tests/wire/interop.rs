//! Signatures, both ways, with the `ssh-keygen` that users have.

use cratemill_protocol::{
    builder::{AUTH_NAMESPACE, Challenge, Nonce},
    manifest, sshsig,
};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, LineEnding, PrivateKey, PublicKey};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("cratemill-interop-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn ssh_keygen(args: &[&str], path: &Path, stdin: &[u8]) -> bool {
    let mut child = Command::new("ssh-keygen")
        .args(args)
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssh-client is installed");
    // It may refuse before it has read all.
    _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait().unwrap().success()
}

fn texts() -> [(&'static str, Vec<u8>); 2] {
    let challenge =
        Challenge { server: "https://mill.example".into(), connection: "a-1".into(), nonce: Nonce([7; 32]) };
    let signed = challenge.signed_bytes("SHA256:0123456789");
    [(AUTH_NAMESPACE, signed), (manifest::NAMESPACE, b"{\n  \"crate\": \"hexyl\"\n}\n".to_vec())]
}

#[test]
fn what_ssh_keygen_signs_verifies_here() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let folder = Folder::new();
        let key = folder.0.join("key");
        assert!(ssh_keygen(&["-q", "-N", "", "-t", kind, "-f"], &key, b""));
        let line = std::fs::read_to_string(key.with_extension("pub")).unwrap();
        let public = sshsig::public_key(&line).unwrap();
        for (namespace, text) in texts() {
            let file = folder.file("text", &text);
            let key = key.to_str().unwrap();
            assert!(ssh_keygen(&["-Y", "sign", "-f", key, "-n", namespace], &file, b""));
            let armoured = std::fs::read_to_string(folder.0.join("text.sig")).unwrap();
            std::fs::remove_file(folder.0.join("text.sig")).unwrap();
            sshsig::verify(&public, namespace, &text, &armoured).unwrap();
            let wrong = [
                sshsig::verify(&public, "other@v1", &text, &armoured),
                sshsig::verify(&public, namespace, b"other", &armoured),
                sshsig::verify(&another_key(), namespace, &text, &armoured),
            ];
            assert_eq!(wrong, [Err(sshsig::Error::Signature); 3]);
        }
    }
}

fn another_key() -> PublicKey {
    PrivateKey::random(&mut rand_core::OsRng, Algorithm::Ed25519).unwrap().public_key().clone()
}

#[test]
fn what_is_signed_here_ssh_keygen_verifies() {
    for algorithm in [Algorithm::Ed25519, Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }] {
        let folder = Folder::new();
        let key = PrivateKey::random(&mut rand_core::OsRng, algorithm).unwrap();
        let signers = format!("builder {}\n", key.public_key().to_openssh().unwrap());
        let signers = folder.file("allowed_signers", signers.as_bytes());
        for (namespace, text) in texts() {
            let signature = key.sign(namespace, HashAlg::Sha512, &text).unwrap();
            let signature = folder.file("sig", signature.to_pem(LineEnding::LF).unwrap().as_bytes());
            let verify = |namespace, text: &[u8]| {
                let signers = signers.to_str().unwrap();
                ssh_keygen(
                    &["-Y", "verify", "-f", signers, "-I", "builder", "-n", namespace, "-s"],
                    &signature,
                    text,
                )
            };
            assert!(verify(namespace, &text));
            assert!(!verify(namespace, b"other") && !verify("other@v1", &text));
        }
    }
}
