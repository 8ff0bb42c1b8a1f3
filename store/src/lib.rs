//! cratemill-store
