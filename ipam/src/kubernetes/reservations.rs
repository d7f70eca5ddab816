//! Reservations: objects that make an address exclusive among overlapping ranges.

use kube::api::{DeleteParams, DynamicObject, PostParams, Preconditions};
use serde_json::{Value, json};

use super::{Kubernetes, resource};
use crate::error::Error;
use crate::pool::{NodeLife, tenant_id};
use crate::tenant::Tenant;

const KIND: &str = "OverlappingRangeIPReservation";

/// In whose name an address is reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserver {
    /// A node that keeps it for whoever comes.
    Node(NodeLife),
    /// A tenant, wherever it is.
    Tenant(Tenant),
    /// A pod, by the peer's doing: `namespace/name`.
    Pod(String),
}

impl Reserver {
    fn id(&self) -> String {
        match self {
            Self::Node(life) => life.to_string(),
            Self::Tenant(tenant) => tenant_id(tenant),
            Self::Pod(podref) => podref.clone(),
        }
    }

    fn has(&self, object: &DynamicObject) -> bool {
        let text = |path| object.data.pointer(path).and_then(Value::as_str).unwrap_or_default();
        match self {
            Self::Node(life) => NodeLife::parse(text("/spec/containerid"))
                .is_some_and(|of| of.is_same_life(life) || of.is_earlier_boot_of(life)),
            Self::Tenant(tenant) => text("/spec/containerid") == tenant_id(tenant),
            Self::Pod(podref) => text("/spec/podref") == podref,
        }
    }
}

impl Kubernetes {
    /// Reserves an address among overlapping ranges; false when it is another's.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn reserve(&self, name: &str, reserver: &Reserver) -> Result<bool, Error> {
        let api = self.api(&self.namespace, &resource(KIND));
        let spec = json!({"spec": {"podref": reserver.id(), "containerid": reserver.id()}});
        let object = DynamicObject::new(name, &resource(KIND)).data(spec);
        self.retried(
            || format!("making reservation {name}"),
            || async {
                match api.create(&PostParams::default(), &object).await {
                    Ok(_) => Ok(true),
                    Err(kube::Error::Api(status)) if status.code == 409 => {
                        Ok(api.get_opt(name).await?.is_some_and(|found| reserver.has(&found)))
                    }
                    Err(error) => Err(error),
                }
            },
        )
        .await
    }

    /// Removes the reservation of an address, if it is this one's.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub async fn unreserve(&self, name: &str, reserver: &Reserver) -> Result<(), Error> {
        let api = self.api(&self.namespace, &resource(KIND));
        self.retried(
            || format!("removing reservation {name}"),
            || async {
                let Some(found) = api.get_opt(name).await?.filter(|found| reserver.has(found)) else {
                    return Ok(());
                };
                // This very object, and not one that somebody makes meanwhile.
                let preconditions = Preconditions { uid: found.metadata.uid, resource_version: None };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                match api.delete(name, &params).await {
                    Ok(_) => Ok(()),
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                    Err(error) => Err(error),
                }
            },
        )
        .await
    }
}
