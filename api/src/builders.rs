//! Builders: who they are, for everybody; who may be one, for operators.

use crate::{
    App,
    auth::Operator,
    crates::one_more,
    cursor,
    extract::{Json as JsonBody, Path, Query},
    nodes,
    problem::{Body as ProblemBody, Problem, Result},
    views::{Builder, Page},
};
use axum::{Json, extract::State, http::StatusCode};
use cratemill_protocol::{
    BuilderId, Target,
    builder::MAX_TARGETS,
    bus::{BuilderState, NodeMessage},
    sshsig, subjects,
};
use cratemill_store::{
    PgConnection,
    builders::{self, RegisterError},
    outbox,
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::{router::OpenApiRouter, routes};

const MAX_NAME_CHARS: usize = 64;

pub(crate) fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, register)).routes(routes!(update))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// The `next` of the page before.
    cursor: Option<String>,
    /// 1 to 100, 50 if not given.
    limit: Option<u8>,
}

/// Builders, the oldest first
#[utoipa::path(get, operation_id = "list_builders", path = "/api/v1/builders", tag = "builders", params(ListQuery), responses(
    (status = 200, body = Page<Builder>, description = "a page"),
    (status = 400, body = ProblemBody, content_type = "application/problem+json", description = "bad query"),
))]
async fn list(State(app): State<App>, Query(query): Query<ListQuery>) -> Result<Json<Page<Builder>>> {
    let after = cursor::decode("builders", query.cursor.as_deref())?.unwrap_or(0);
    let limit = cursor::limit(query.limit)?;
    let mut conn = app.pool.acquire().await?;
    let rows = builders::page(&mut conn, after, one_more(limit)).await?;
    let (rows, next) = cursor::page(rows, limit, "builders", |row| row.id);
    Ok(Json(Page { items: rows.into_iter().map(Into::into).collect(), next }))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewBuilder {
    /// 1 to 64 letters, digits, '-', '_' or '.'.
    name: String,
    /// An OpenSSH public key, one line: ed25519, ecdsa or rsa.
    public_key: String,
    /// Target triples it may build for; the service must build for them.
    #[schema(value_type = Vec<String>)]
    targets: Vec<Target>,
}

/// Let a builder in
#[utoipa::path(post, operation_id = "register_builder", path = "/api/v1/builders", tag = "builders", request_body = NewBuilder,
    security(("operator" = [])), responses(
        (status = 201, body = Builder, description = "the builder"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "not an operator"),
        (status = 409, body = ProblemBody, content_type = "application/problem+json", description = "name or key taken"),
        (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "a field is wrong"),
    ))]
async fn register(
    State(app): State<App>,
    _: Operator,
    JsonBody(body): JsonBody<NewBuilder>,
) -> Result<(StatusCode, Json<Builder>)> {
    let (fingerprint, public_key) = check(&body)?;
    let mut tx = app.pool.begin().await?;
    let id = builders::register(&mut tx, &body.name, &fingerprint, &public_key, &body.targets).await?;
    outbox::builder_changed(&mut tx, id, &body.name, BuilderState::Registered).await?;
    let builder = find(&mut tx, id).await?;
    tx.commit().await?;
    tracing::info!(builder = %id, name = body.name, fingerprint, "a builder was registered");
    Ok((StatusCode::CREATED, Json(builder.into())))
}

/// The fingerprint and the one line that is kept of the key.
fn check(body: &NewBuilder) -> Result<(String, String)> {
    let of_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !(1..=MAX_NAME_CHARS).contains(&body.name.len()) || !body.name.chars().all(of_name) {
        return Err(Problem::invalid("name", "a builder's name is 1 to 64 letters, digits, '-', '_' or '.'"));
    }
    if !(1..=MAX_TARGETS).contains(&body.targets.len()) {
        return Err(Problem::invalid("targets", format!("a builder has 1 to {MAX_TARGETS} targets")));
    }
    if body.targets.iter().any(Target::is_any) {
        return Err(Problem::invalid("targets", "any is no target triple; every builder may build for it"));
    }
    let wrong = |error: &dyn std::fmt::Display| Problem::invalid("public_key", error.to_string());
    let mut key = sshsig::public_key(&body.public_key).map_err(|error| wrong(&error))?;
    key.set_comment("");
    let line = key.to_openssh().map_err(|error| wrong(&error))?;
    Ok((sshsig::fingerprint(&key), line))
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Name => Self::conflict(error.to_string()).at("name"),
            RegisterError::Key => Self::conflict(error.to_string()).at("public_key"),
            RegisterError::Target(_) => Self::invalid("targets", error.to_string()),
            RegisterError::Database(error) => error.into(),
        }
    }
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    /// False ends its connection; its jobs go to others when their leases end.
    enabled: Option<bool>,
    /// True lets it finish what it has, and gives it nothing new.
    drain: Option<bool>,
}

/// Enable, disable or drain a builder
#[utoipa::path(patch, operation_id = "update_builder", path = "/api/v1/builders/{id}", tag = "builders", params(("id" = i64, Path)),
    request_body = Changes, security(("operator" = [])), responses(
        (status = 200, body = Builder, description = "the builder"),
        (status = 401, body = ProblemBody, content_type = "application/problem+json", description = "not an operator"),
        (status = 404, body = ProblemBody, content_type = "application/problem+json", description = "unknown"),
        (status = 422, body = ProblemBody, content_type = "application/problem+json", description = "nothing to change"),
    ))]
async fn update(
    State(app): State<App>,
    _: Operator,
    Path(id): Path<BuilderId>,
    JsonBody(body): JsonBody<Changes>,
) -> Result<Json<Builder>> {
    if body.enabled.is_none() && body.drain.is_none() {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "give enabled, drain or both"));
    }
    let mut tx = app.pool.begin().await?;
    if !builders::update(&mut tx, id, body.enabled, body.drain).await? {
        return Err(unknown(id));
    }
    let builder = find(&mut tx, id).await?;
    let state = match (body.enabled, body.drain) {
        (Some(false), _) => BuilderState::Disabled,
        (_, Some(true)) => BuilderState::Draining,
        _ => BuilderState::Enabled,
    };
    outbox::builder_changed(&mut tx, id, &builder.name, state).await?;
    tx.commit().await?;
    tracing::info!(builder = %id, name = builder.name, ?state, "a builder was changed");
    // To all nodes: the builder may be connecting to another one right now.
    if body.enabled == Some(false) {
        nodes::tell(&app.bus, subjects::ALL_NODES.into(), &NodeMessage::Disabled { builder: id }).await;
    }
    if let Some(drain) = body.drain {
        let message =
            if drain { NodeMessage::Drain { builder: id } } else { NodeMessage::Undrain { builder: id } };
        nodes::tell(&app.bus, subjects::ALL_NODES.into(), &message).await;
    }
    Ok(Json(builder.into()))
}

async fn find(conn: &mut PgConnection, id: BuilderId) -> Result<builders::Builder> {
    builders::find(conn, id).await?.ok_or_else(|| unknown(id))
}

fn unknown(id: BuilderId) -> Problem {
    Problem::not_found(format!("there is no builder {id}")).at("id")
}
