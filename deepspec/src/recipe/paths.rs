//! Resolution of relative paths in recipes.

use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::expand_home;

use super::schema::Recipe;

/// The input file or folder a recipe in `folder` means by `path`: relative to the working directory, or,
/// where nothing is there, relative to `folder` if something is. A path that leads nowhere stays relative to
/// the working directory, so that the error about it shows what the user wrote.
pub fn resolve_input(path: &Path, folder: &Path) -> PathBuf {
    let path = expand_home(path);
    let beside_recipe = folder.join(&path);
    if !path.exists() && beside_recipe.exists() { beside_recipe } else { path }
}

/// Resolves every path of `recipe`, which was read from `folder`.
pub(super) fn resolve(recipe: &mut Recipe, folder: &Path) {
    // A target that leads nowhere may be a Hugging Face name, or a folder that an earlier stage makes.
    if let Some(target) = resolve_input(Path::new(&recipe.target), folder).to_str() {
        recipe.target = target.to_owned();
    }
    let inputs = recipe.data.train.iter_mut().chain(&mut recipe.data.validation);
    let tasks = recipe.evaluate.tasks.iter_mut().filter_map(|task| task.path.as_mut());
    for path in inputs.chain(tasks) {
        *path = resolve_input(path, folder);
    }
    recipe.train.from = recipe.train.from.take().map(|from| resolve_input(&from, folder));
    recipe.data.store = recipe.data.store.take().map(|store| expand_home(&store));
    recipe.data.cache = recipe.data.cache.take().map(|cache| expand_home(&cache));
    recipe.output.dir = recipe.output.dir.take().map(|dir| expand_home(&dir));
}
