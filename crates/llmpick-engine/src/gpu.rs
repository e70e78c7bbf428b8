//! Which device computes: the processor, or a GPU through candle.
//!
//! A GPU is there only in a program that was built with the feature `cuda`, on a machine
//! with a driver. Where one was asked for by name and cannot be had, that is said, and the
//! processor computes: a model that answers slowly is worth more than one that does not.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

/// Where models are to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU, where this program and machine have one; else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or(UnknownDevice),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A text that is the name of no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device is auto, cpu, or cuda:N")]
pub struct UnknownDevice;

/// Where a model runs.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// On the processor, by our kernels where they can.
    Cpu,
    /// On a device of candle's.
    Candle(Device),
}

impl Place {
    /// The place that was chosen, or the processor. Says why where it is another than
    /// somebody asked for.
    pub fn of(choice: DeviceChoice) -> Place {
        let number = match choice {
            DeviceChoice::Cpu => return Place::Cpu,
            DeviceChoice::Auto => 0,
            DeviceChoice::Cuda(number) => number,
        };
        match open(number) {
            Ok(device) => Place::Candle(device),
            Err(why) => {
                if choice == DeviceChoice::Auto {
                    tracing::debug!(%why, "no GPU; models run on the CPU");
                } else {
                    tracing::warn!(device = %choice, %why, "the GPU cannot be used; models run on the CPU");
                }
                Place::Cpu
            }
        }
    }

    /// Its name, as in the setting.
    pub fn name(&self) -> String {
        match self {
            Place::Cpu | Place::Candle(Device::Cpu) => "cpu".to_owned(),
            Place::Candle(device) => match device.location() {
                candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
                _ => "gpu".to_owned(),
            },
        }
    }

    /// True where weights do not go into the machine's own memory.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Place::Candle(device) if !device.is_cpu())
    }
}

#[cfg(not(feature = "cuda"))]
fn open(_number: usize) -> Result<Device, String> {
    Err("this program was built without GPU support; `cargo xtask cuda` builds one with it".into())
}

#[cfg(feature = "cuda")]
fn open(number: usize) -> Result<Device, String> {
    llmpick_kernels::cuda::libraries()?;
    // A driver of another version than its library, or no such GPU.
    crate::stock::guarded(|| Device::new_cuda(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn devices_have_names() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert_eq!(wrong.parse::<DeviceChoice>(), Err(UnknownDevice), "{wrong}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert!(matches!(Place::of(DeviceChoice::Cpu), Place::Cpu));
        // There is no machine with so many.
        let none = Place::of(DeviceChoice::Cuda(4096));
        assert!(matches!(none, Place::Cpu));
        assert_eq!(none.name(), "cpu");
        assert!(!none.is_elsewhere());
    }
}
