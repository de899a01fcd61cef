//! Where this user's own files are: the master key of the default, the admin token, the control
//! sockets.

use std::path::PathBuf;

/// Why there is no such place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// The platform names none.
    #[error(
        "this user has no home directory to keep the master key and the admin token in; set HOME or XDG_DATA_HOME"
    )]
    None,
    /// It would be another one from each working directory.
    #[error("the home directory {} is not an absolute path; set HOME or XDG_DATA_HOME to one", .path.display())]
    Relative {
        /// What HOME says.
        path: PathBuf,
    },
}

/// `<user data>/nimbus`.
///
/// # Errors
///
/// [`HomeError`].
pub fn user_dir() -> Result<PathBuf, HomeError> {
    let path = dirs::data_local_dir().ok_or(HomeError::None)?;
    if !path.is_absolute() {
        return Err(HomeError::Relative { path });
    }
    Ok(path.join("nimbus"))
}
