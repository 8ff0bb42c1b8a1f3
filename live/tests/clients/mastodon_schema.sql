-- The tables and columns of Mastodon's own database that a streaming server reads, with Mastodon's types.

CREATE TABLE accounts (
    id bigint PRIMARY KEY,
    username character varying NOT NULL DEFAULT '',
    domain character varying,
    suspended_at timestamp without time zone
);

CREATE TABLE user_roles (
    id bigint PRIMARY KEY,
    permissions bigint NOT NULL DEFAULT 0
);

CREATE TABLE users (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL,
    role_id bigint,
    chosen_languages character varying[],
    disabled boolean NOT NULL DEFAULT false
);
CREATE INDEX index_users_on_account_id ON users (account_id);

CREATE TABLE oauth_access_tokens (
    id bigint PRIMARY KEY,
    token character varying NOT NULL,
    resource_owner_id bigint,
    scopes character varying,
    revoked_at timestamp without time zone
);
CREATE UNIQUE INDEX index_oauth_access_tokens_on_token ON oauth_access_tokens (token);

CREATE TABLE lists (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL
);
CREATE INDEX index_lists_on_account_id ON lists (account_id);

CREATE TABLE settings (
    var character varying NOT NULL,
    value text
);
CREATE INDEX index_settings_on_var ON settings (var);

CREATE TABLE blocks (
    account_id bigint NOT NULL,
    target_account_id bigint NOT NULL
);
CREATE UNIQUE INDEX index_blocks_on_account_id_and_target_account_id ON blocks (account_id, target_account_id);
CREATE INDEX index_blocks_on_target_account_id ON blocks (target_account_id);

CREATE TABLE mutes (
    account_id bigint NOT NULL,
    target_account_id bigint NOT NULL
);
CREATE UNIQUE INDEX index_mutes_on_account_id_and_target_account_id ON mutes (account_id, target_account_id);

CREATE TABLE account_domain_blocks (
    account_id bigint,
    domain character varying
);
CREATE UNIQUE INDEX index_account_domain_blocks_on_account_id_and_domain ON account_domain_blocks (account_id, domain);

CREATE TABLE custom_filters (
    id bigint PRIMARY KEY,
    account_id bigint NOT NULL,
    phrase text NOT NULL DEFAULT '',
    context character varying[] NOT NULL DEFAULT '{}',
    expires_at timestamp without time zone,
    action integer NOT NULL DEFAULT 0
);
CREATE INDEX index_custom_filters_on_account_id ON custom_filters (account_id);

CREATE TABLE custom_filter_keywords (
    custom_filter_id bigint NOT NULL,
    keyword text NOT NULL DEFAULT '',
    whole_word boolean NOT NULL DEFAULT true
);
CREATE INDEX index_custom_filter_keywords_on_custom_filter_id ON custom_filter_keywords (custom_filter_id);
