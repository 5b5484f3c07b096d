//! Which requests the broker takes, and in which versions.
//!
//! It is a list of what is known to work, not of what the libraries below can decode: a client reads it from the answer
//! to `ApiVersions` and then either keeps to it or says what it misses. Left out on purpose: transactions (without
//! `EndTxn` below, an open one would hide records for ever), topic ids in `Fetch` (version 13), the new group protocol,
//! SASL, ACLs and client telemetry.

use tansu_sans_io::{ApiVersionsResponse, api_versions_response::ApiVersion};

/// Number of the request that carries records in.
pub(super) const PRODUCE: i16 = 0;
/// Number of the request that asks for this very list.
pub(super) const API_VERSIONS: i16 = 18;

/// Request number, lowest and highest version.
const SUPPORTED: [(i16, i16, i16); 24] = [
    (PRODUCE, 0, 9),
    (1, 0, 12), // Fetch
    (2, 0, 6),  // ListOffsets
    (3, 0, 12), // Metadata
    (8, 0, 8),  // OffsetCommit
    (9, 0, 8),  // OffsetFetch
    (10, 0, 4), // FindCoordinator
    (11, 0, 9), // JoinGroup
    (12, 0, 4), // Heartbeat
    (13, 0, 5), // LeaveGroup
    (14, 0, 5), // SyncGroup
    (15, 0, 5), // DescribeGroups
    (16, 0, 4), // ListGroups
    (SASL_HANDSHAKE, 0, 1),
    (API_VERSIONS, 0, 4),
    (19, 0, 7), // CreateTopics
    (20, 0, 6), // DeleteTopics
    (21, 0, 2), // DeleteRecords
    (22, 0, 4), // InitProducerId
    (32, 0, 4), // DescribeConfigs
    (42, 0, 2), // DeleteGroups
    (44, 0, 1), // IncrementalAlterConfigs
    (60, 0, 1), // DescribeCluster
    (75, 0, 0), // DescribeTopicPartitions
];

/// Taken only to be refused with a code that the client can show.
const SASL_HANDSHAKE: i16 = 17;

/// Whether the broker takes this request in this version.
pub(super) fn supports(api_key: i16, api_version: i16) -> bool {
    SUPPORTED.iter().any(|(key, min, max)| *key == api_key && (*min..=*max).contains(&api_version))
}

/// The list as the answer to `ApiVersions`.
pub(super) fn response(error_code: i16) -> ApiVersionsResponse {
    let keys =
        SUPPORTED.iter().map(|(key, min, max)| ApiVersion::default().api_key(*key).min_version(*min).max_version(*max));
    ApiVersionsResponse::default()
        .error_code(error_code)
        .api_keys(Some(keys.collect()))
        .throttle_time_ms(Some(0))
        .supported_features(Some(Vec::new()))
        .finalized_features(Some(Vec::new()))
        .finalized_features_epoch(Some(-1))
        .zk_migration_ready(Some(false))
}
