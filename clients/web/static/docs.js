"use strict";

SwaggerUIBundle({ url: "openapi.json", domNode: document.getElementById("description"), validatorUrl: null });
