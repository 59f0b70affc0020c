//! The watchdog device: a machine on which nothing can act any more resets.
//!
//! ```text
//! writable + permit accepted -> pet.   No renewal for `timeout_s` -> the machine resets.
//! nothing of PostgreSQL is left -> magic close, and the device sleeps
//! ```
//!
//! Petted by accepted permits only, not by the passing of time, so a guardian that is alive and an agent that is not
//! end in a reset as well, should the fence itself fail. Never closed while a backend lives. Deliberately absent: the
//! choice of the time-out (configuration).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::deadman::set_watchdog_timeout;
use super::protocol::{Refusal, WatchdogConfig, WatchdogMode};
use super::status::WatchdogState;

/// The device, or its absence.
#[derive(Debug, Default)]
pub struct Watchdog {
    config: WatchdogConfig,
    device: Option<File>,
    state: WatchdogState,
}

impl Watchdog {
    /// Takes new configuration; a device that is armed now stays so until the next disarming.
    pub fn configure(&mut self, config: WatchdogConfig) {
        if self.device.is_none() {
            self.state = WatchdogState::Off;
        }
        self.config = config;
    }

    /// For the status.
    pub fn state(&self) -> &WatchdogState {
        &self.state
    }

    /// The device that is armed.
    pub fn armed(&self) -> Option<&Path> {
        self.device.as_ref().map(|_| self.config.device.as_path())
    }

    /// Opens the device, which starts it, before PostgreSQL becomes writable.
    ///
    /// # Errors
    /// `Watchdog`, only when it is required.
    pub fn arm(&mut self) -> Result<(), Refusal> {
        if self.config.mode == WatchdogMode::Off || self.device.is_some() {
            return Ok(());
        }
        match open(&self.config) {
            Ok((device, timeout_s)) => {
                self.device = Some(device);
                self.state = WatchdogState::Armed { timeout_s };
                Ok(())
            }
            Err(error) => {
                let why = error.to_string();
                self.state = WatchdogState::Unavailable { why: why.clone() };
                match self.config.mode {
                    WatchdogMode::Required => Err(Refusal::Watchdog { device: self.config.device.clone(), why }),
                    WatchdogMode::Automatic | WatchdogMode::Off => Ok(()),
                }
            }
        }
    }

    /// A permit was accepted while PostgreSQL is writable: start counting anew.
    pub fn pet(&mut self) {
        if let Some(device) = &mut self.device {
            // Any byte but the magic one. Should it fail, the machine resets, which is what was asked for.
            let _ = device.write(b"\n");
        }
    }

    /// Nothing of PostgreSQL is left: let the device sleep.
    pub fn disarm(&mut self) {
        if let Some(mut device) = self.device.take() {
            close(&mut device);
            self.state = WatchdogState::Off;
        }
    }

    /// Puts a device to sleep that a guardian before this one had armed and died over, now that nothing of its
    /// PostgreSQL is left.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn disarm_inherited(device: &Path) -> io::Result<()> {
        close(&mut open_device(device)?);
        Ok(())
    }
}

fn open_device(path: &Path) -> io::Result<File> {
    // Non-blocking, should the path be something else than a device.
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

fn open(config: &WatchdogConfig) -> io::Result<(File, u32)> {
    let mut device = open_device(&config.device)?;
    if config.testing {
        device.write_all(format!("timeout={}\n", config.timeout_s).as_bytes())?;
        return Ok((device, config.timeout_s));
    }
    match set_watchdog_timeout(device.as_fd(), config.timeout_s) {
        // A device may round; one that waits longer than asked would reset the machine too late.
        Ok(granted) if granted <= config.timeout_s => Ok((device, granted)),
        Ok(granted) => {
            close(&mut device);
            Err(io::Error::other(format!("the device waits {granted} s at least, {} s were asked", config.timeout_s)))
        }
        Err(error) => {
            close(&mut device);
            Err(error)
        }
    }
}

/// The letter tells the driver that the closing is meant.
///
/// Source: Linux watchdog API, "Magic Close feature".
fn close(device: &mut File) {
    let _ = device.write(b"V");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(mode: WatchdogMode, device: &Path) -> WatchdogConfig {
        WatchdogConfig { mode, device: device.to_owned(), timeout_s: 5, testing: false }
    }

    #[test]
    fn off_never_opens_and_automatic_goes_on_without() {
        let directory = tempfile::tempdir().unwrap();
        let absent = directory.path().join("watchdog");
        let mut watchdog = Watchdog::default();
        watchdog.configure(config(WatchdogMode::Off, &absent));
        assert_eq!(watchdog.arm(), Ok(()));
        assert_eq!(watchdog.state(), &WatchdogState::Off);
        watchdog.configure(config(WatchdogMode::Automatic, &absent));
        assert_eq!(watchdog.arm(), Ok(()));
        assert!(matches!(watchdog.state(), WatchdogState::Unavailable { .. }));
        assert!(!absent.exists(), "a device is never created");
    }

    #[test]
    fn required_refuses_and_names_the_device() {
        let directory = tempfile::tempdir().unwrap();
        let mut watchdog = Watchdog::default();
        watchdog.configure(config(WatchdogMode::Required, &directory.path().join("watchdog")));
        let refusal = watchdog.arm().unwrap_err().to_string();
        assert!(refusal.contains("watchdog") && refusal.contains("required"), "{refusal}");
    }

    #[test]
    fn a_file_that_is_no_watchdog_is_closed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "").unwrap();
        let mut watchdog = Watchdog::default();
        watchdog.configure(config(WatchdogMode::Required, &path));
        assert!(watchdog.arm().is_err());
        assert!(watchdog.armed().is_none());
        assert_eq!(std::fs::read(&path).unwrap(), b"V", "left with the magic letter");
    }
}
