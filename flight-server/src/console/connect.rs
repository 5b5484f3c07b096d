//! Lines to paste: how each kind of client asks this server its first question.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::Addresses;

/// The question that all of them ask.
const QUESTION: &str = "select song_name, total_plays from top_songs order by total_plays desc limit 5";

/// A client, and what to paste for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snippet {
    /// Its name, for people.
    pub client: &'static str,
    /// One or more lines.
    pub paste: String,
}

/// A line to paste for each door.
pub fn snippets(addresses: &Addresses) -> Vec<Snippet> {
    let flight = reachable(addresses.flight);
    let postgres = reachable(addresses.postgres);
    let (host, port) = (postgres.ip(), postgres.port());
    vec![
        Snippet { client: "psql", paste: format!("psql -h {host} -p {port} -U me lake -c '{QUESTION}'") },
        Snippet {
            client: "Python (pip install adbc-driver-flightsql pyarrow)",
            paste: format!(
                "import adbc_driver_flightsql.dbapi as flight_sql\n\
                 with flight_sql.connect(\"grpc://{flight}\") as connection, connection.cursor() as cursor:\n    \
                 cursor.execute(\"{QUESTION}\")\n    \
                 print(cursor.fetch_arrow_table())"
            ),
        },
        Snippet { client: "command line", paste: format!("bin/lakebeat sql \"{QUESTION}\"") },
    ]
}

/// An address to connect to: one that stands for all of a machine's addresses is no such thing.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_names_an_address_that_can_be_reached() {
        let address = |text: &str| text.parse().expect("an address");
        let addresses = Addresses {
            flight: address("0.0.0.0:31337"),
            postgres: address("127.0.0.1:5433"),
            console: address("127.0.0.1:8080"),
        };
        let lines = snippets(&addresses);
        assert!(lines[0].paste.starts_with("psql -h 127.0.0.1 -p 5433 -U me lake -c 'select"));
        assert!(lines[1].paste.contains("grpc://127.0.0.1:31337"));
        assert!(lines[2].paste.starts_with("bin/lakebeat sql \"select"));
    }
}
