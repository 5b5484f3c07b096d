//! The files of the bundled project, as they lie in `transforms/models/`, inside the program.

/// Path within the project, and text.
pub(super) const FILES: [(&str, &str); 8] = [
    ("dbt_project.yml", include_str!("../../models/dbt_project.yml")),
    ("models/sources.yml", include_str!("../../models/models/sources.yml")),
    ("models/silver/schema.yml", include_str!("../../models/models/silver/schema.yml")),
    ("models/silver/spotify_silver.sql", include_str!("../../models/models/silver/spotify_silver.sql")),
    ("models/gold/schema.yml", include_str!("../../models/models/gold/schema.yml")),
    ("models/gold/top_songs.sql", include_str!("../../models/models/gold/top_songs.sql")),
    ("models/gold/user_engagement.sql", include_str!("../../models/models/gold/user_engagement.sql")),
    ("models/gold/listening_by_minute.sql", include_str!("../../models/models/gold/listening_by_minute.sql")),
];
