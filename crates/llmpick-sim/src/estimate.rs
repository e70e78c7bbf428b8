//! A mean over seeds and how sure it is.

use serde::Serialize;

/// A mean over independent seeds with its 95 % interval (Student's t).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end of the interval; `None` where one seed says nothing of the spread.
    pub low: Option<f64>,
    /// Upper end, likewise.
    pub high: Option<f64>,
}

impl Estimate {
    /// Of one value for each seed; NaN of none.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        if values.len() < 2 {
            return Self {
                mean,
                low: None,
                high: None,
            };
        }
        let squares: f64 = values.iter().map(|x| (x - mean) * (x - mean)).sum();
        let half = student(values.len() - 1) * (squares / (n - 1.0) / n).sqrt();
        Self {
            mean,
            low: Some(mean - half),
            high: Some(mean + half),
        }
    }

    /// Half the width of the interval, where there is one.
    pub fn half_width(&self) -> Option<f64> {
        self.high.map(|high| high - self.mean)
    }
}

/// The 97.5 % quantile of Student's t. Between two entries of the table the wider one.
fn student(freedom: usize) -> f64 {
    const TO_30: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    match freedom {
        0 => f64::INFINITY,
        1..=30 => TO_30[freedom - 1],
        31..40 => 2.042,
        40..60 => 2.021,
        60..120 => 2.000,
        120..1000 => 1.980,
        _ => 1.962,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // s² = 2.5, √(s²/5) = 0.70711, t₄ = 2.776.
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(estimate.mean, 3.0);
        assert!((estimate.half_width().unwrap() - 1.96293).abs() < 1e-4);
        assert!((estimate.low.unwrap() + estimate.high.unwrap() - 6.0).abs() < 1e-12);
        assert_eq!(Estimate::of(&[7.0]).low, None);
    }
}
