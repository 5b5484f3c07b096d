//! A shared value that the compiler does not look into.
//!
//! Whether a future may move between threads is asked anew for each async function, and answered by walking all types that
//! it holds. DataFusion's sessions and plans reach thousands of types, the whole SQL grammar among them: crates that
//! held them directly took a minute and more to check.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// An `Arc<T>` that is `Send` and `Sync` by its own word, which is checked once, where it is made.
pub struct Opaque<T>(Arc<dyn Hidden<T>>);

trait Hidden<T>: Send + Sync {
    fn value(&self) -> &T;
}

impl<T: Send + Sync> Hidden<T> for T {
    fn value(&self) -> &T {
        self
    }
}

impl<T: Send + Sync + 'static> Opaque<T> {
    /// Hides the type of a value.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Deref for Opaque<T> {
    type Target = T;

    fn deref(&self) -> &T {
        (*self.0).value()
    }
}

impl<T> fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opaque").finish_non_exhaustive()
    }
}

impl<T> Clone for Opaque<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}
