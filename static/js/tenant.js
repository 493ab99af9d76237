/* Behaviour of the tenant's pages: dialogs that ask before something that cannot be taken back. */
(() => {
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-dialog]");
    if (opener) document.getElementById(opener.dataset.dialog).showModal();
    else if (event.target.closest("[data-close]")) event.target.closest("dialog").close();
    else if (event.target.matches("dialog")) event.target.close();
  });
  for (const control of document.querySelectorAll("[data-submits]")) control.addEventListener("change", () => control.form.requestSubmit());
})();
