//! Scaffold while the crates are young: building one of them with this gives the features of the whole workspace.
