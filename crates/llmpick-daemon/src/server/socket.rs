//! The unix socket: ours alone, and never somebody else's.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::{UnixListener, UnixStream};

use super::ServeError;

/// A listening socket whose file goes away with it.
#[derive(Debug)]
pub(crate) struct OwnSocket {
    pub(crate) listener: Option<UnixListener>,
    path: Utf8PathBuf,
    /// Device and inode of our file, so that a successor's is left alone.
    identity: Option<(u64, u64)>,
}

/// Binds the socket, readable and writable by its owner only from its first moment. A file
/// that is left of a daemon that died is replaced; one that answers is not.
pub(crate) async fn bind(path: &Utf8Path) -> Result<OwnSocket, ServeError> {
    let failed = |source| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    if let Some(folder) = path.parent() {
        crate::parts::make_private_folder(folder.as_std_path()).map_err(failed)?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(ServeError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(ServeError::AlreadyRunning {
                path: path.to_owned(),
            });
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
    }
    let listener = bind_private(path).map_err(failed)?;
    Ok(OwnSocket {
        listener: Some(listener),
        identity: identity(path.as_std_path()),
        path: path.to_owned(),
    })
}

/// The file is made under another name in a folder of our own and moved into place, so that
/// there is no moment in which others could open it. (The umask would do the same, but it
/// belongs to the whole process, whose other threads write files too.)
fn bind_private(path: &Utf8Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let folder = path.parent().unwrap_or(Utf8Path::new("."));
    let nest = folder.join(format!(".llmpick-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&nest);
    std::fs::DirBuilder::new().mode(0o700).create(&nest)?;
    let inside = nest.join("s");
    let bound = UnixListener::bind(&inside).and_then(|listener| {
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok(listener)
    });
    let _ = std::fs::remove_dir_all(&nest);
    bound
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(self.path.as_std_path()) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
