//! SSH signatures (SSHSIG), as `ssh-keygen -Y sign` and `-Y verify` know them.

use ssh_key::{HashAlg, PublicKey, SshSig};

/// The longest armoured signature we look at: RSA 16384 stays below it.
const MAX_ARMOURED_BYTES: usize = 16 * 1024;
/// The longest line of a public key.
const MAX_KEY_BYTES: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("not an OpenSSH public key of type ed25519, ecdsa or rsa")]
    Key,
    #[error("not an armoured SSH signature")]
    Armour,
    #[error("the signature does not verify for this key, namespace and text")]
    Signature,
}

/// Parses one line `type base64 [comment]` of a public key.
pub fn public_key(line: &str) -> Result<PublicKey, Error> {
    if line.len() > MAX_KEY_BYTES {
        return Err(Error::Key);
    }
    let key = PublicKey::from_openssh(line.trim()).map_err(|_| Error::Key)?;
    let known = key.algorithm().is_ed25519() || key.algorithm().is_ecdsa() || key.algorithm().is_rsa();
    if known { Ok(key) } else { Err(Error::Key) }
}

/// The fingerprint as `ssh-keygen -l` prints it.
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Checks an armoured signature over `text`.
pub fn verify(key: &PublicKey, namespace: &str, text: &[u8], armoured: &str) -> Result<(), Error> {
    if armoured.len() > MAX_ARMOURED_BYTES {
        return Err(Error::Armour);
    }
    let signature = SshSig::from_pem(armoured).map_err(|_| Error::Armour)?;
    key.verify(namespace, text, &signature).map_err(|_| Error::Signature)
}
