//! cratemill-service
