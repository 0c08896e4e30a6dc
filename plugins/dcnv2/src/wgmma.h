// Warpgroup products of SM90.
#pragma once
