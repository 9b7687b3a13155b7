//! A real PostgreSQL in place of the servers of a simulated cloud.

/// A server that stands for those that a cloud creates.
pub struct Stand {
    /// The host that the cloud reports as the address of each server.
    pub host: String,
    /// Does there what a request of the cloud does.
    pub apply: Box<dyn Fn(Change<'_>) + Send + Sync>,
}

/// What a request does to a server.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// A user gets a password, and is made if there is none.
    Password {
        /// Its name.
        user: &'a str,
        /// The password.
        password: &'a str,
    },
    /// A database is made, unless there is one.
    Database {
        /// Its name.
        name: &'a str,
    },
    /// The standby takes over: sessions end, and another server answers.
    Failover,
}
