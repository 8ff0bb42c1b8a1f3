//! What the OpenAPI document says beside the routes, which describe themselves.

use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Cratemill",
        description = "Builds every crate of a Cargo registry into installable artifacts. Errors are \
                       `application/problem+json`. Live events are served beside this API, at /live/events.",
    ),
    tags(
        (name = "crates", description = "What the registry has, and what was built of it"),
        (name = "jobs", description = "What is to be built, is being built and was built"),
        (name = "builders", description = "Who builds"),
        (name = "builder side", description = "What a builder needs for its job, beside its WebSocket"),
    ),
    modifiers(&Security),
)]
pub(crate) struct Document;

struct Security;

impl Modify for Security {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let bearer = |description: &str| {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description));
            SecurityScheme::Http(scheme.build())
        };
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("operator", bearer("The operator's token."));
        components.add_security_scheme("job", bearer("The token that comes with a job."));
    }
}
