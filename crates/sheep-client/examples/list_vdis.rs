//! Lists the VDIs of a cluster, working ones and snapshots.
//!
//! ```text
//! cargo run -p sheep-client --example list_vdis -- HOST[:PORT]
//! ```

use anyhow::Context as _;
use sheep_client::{Client, ClientConfig, GatewayAddress};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address: GatewayAddress = std::env::args()
        .nth(1)
        .context("usage: list_vdis HOST[:PORT]")?
        .parse()?;
    let client = Client::connect(ClientConfig::new(address)).await?;
    println!("VID     bytes             object    copies  name");
    for vdi in client.cluster().list_vdis().await? {
        let tag = if vdi.is_snapshot() {
            format!("@{} (snapshot {})", vdi.tag, vdi.snap_id)
        } else {
            String::new()
        };
        println!(
            "{:<7} {:<17} {:<9} {:<7} {}{tag}",
            vdi.vid.to_string(),
            vdi.size,
            vdi.object_size(),
            vdi.redundancy.to_string(),
            vdi.name,
        );
    }
    Ok(())
}
