//! A router plugin in twenty lines: the cheapest arm that may run.

use llmpick_plugin_sdk::{
    Candidate, Choice, Host, Result, RouterPlugin, SelectRequest, export_plugins,
};

struct CheapestFirst;

impl RouterPlugin for CheapestFirst {
    type Config = ();
    const NAME: &'static str = "example";
    const DESCRIPTION: &'static str = "the cheapest arm that may run";

    fn create((): (), _host: Host) -> Result<Self> {
        Ok(Self)
    }

    fn select(&mut self, request: &SelectRequest<'_>, choice: &mut Choice<'_>) -> Result<()> {
        let cost = |arm: &Candidate<'_>| arm.est_cost.unwrap_or(f64::INFINITY);
        match request.eligible().min_by(|a, b| cost(a).total_cmp(&cost(b))) {
            Some(arm) => choice.choose(arm.index).reason("the cheapest"),
            None => choice.abstain(),
        };
        Ok(())
    }
}

export_plugins!(router CheapestFirst);
