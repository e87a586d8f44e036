//! The Khronos validation layer, for tests: an instance of its own, and what the layer says about it.

use std::sync::{Arc, Mutex, PoisonError};

use vulkano::VulkanLibrary;
use vulkano::instance::Instance;
use vulkano::instance::debug::{
    DebugUtilsMessageSeverity, DebugUtilsMessageType, DebugUtilsMessenger, DebugUtilsMessengerCallback,
    DebugUtilsMessengerCreateInfo, ValidationFeatureEnable,
};

use super::instance::{self, VulkanError, chain};

const LAYER: &str = "VK_LAYER_KHRONOS_validation";

/// What the validation layer says about one opened device. Whoever keeps it hears what is said when the device goes.
#[derive(Debug)]
pub struct Validation {
    messages: Arc<Mutex<Vec<String>>>,
    _messenger: DebugUtilsMessenger,
}

impl Validation {
    /// Its messages so far, each with the name of the rule that is broken.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An instance with the layer and its synchronization validation.
///
/// # Errors
/// When the layer is not installed, or the loader or the driver refuses.
pub(super) fn instance() -> Result<(Arc<Instance>, Validation), VulkanError> {
    let library = VulkanLibrary::new().map_err(|e| VulkanError::Loader(chain(&e)))?;
    // vulkano panics on a layer that is not there.
    let mut layers = library.layer_properties().map_err(|e| VulkanError::Validation(chain(&e)))?;
    if !layers.any(|layer| layer.name() == LAYER) {
        return Err(VulkanError::Validation(format!("the loader does not list {LAYER}")));
    }
    let messages: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = messages.clone();
    // SAFETY: the callback calls nothing of Vulkan.
    let callback = unsafe {
        DebugUtilsMessengerCallback::new(move |_, _, data| {
            let text = format!("{}: {}", data.message_id_name.unwrap_or("(no rule)"), data.message);
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        })
    };
    let messenger = DebugUtilsMessengerCreateInfo {
        message_severity: DebugUtilsMessageSeverity::ERROR | DebugUtilsMessageSeverity::WARNING,
        // General messages are the loader's, on drivers that do not load.
        message_type: DebugUtilsMessageType::VALIDATION | DebugUtilsMessageType::PERFORMANCE,
        ..DebugUtilsMessengerCreateInfo::user_callback(callback)
    };
    let mut info = instance::create_info();
    info.enabled_layers = vec![LAYER.into()];
    info.enabled_extensions.ext_debug_utils = true;
    info.enabled_extensions.ext_validation_features = true;
    info.enabled_validation_features = vec![ValidationFeatureEnable::SynchronizationValidation];
    info.debug_utils_messengers = vec![messenger.clone()];
    let instance = Instance::new(library, info).map_err(|e| VulkanError::Driver(chain(&e)))?;
    let messenger = DebugUtilsMessenger::new(instance.clone(), messenger);
    let messenger = messenger.map_err(|e| VulkanError::Validation(chain(&e)))?;
    Ok((instance, Validation { messages, _messenger: messenger }))
}
