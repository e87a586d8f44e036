// What every kernel sees of a step: the values that change from step to step lie in one small buffer.
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_shader_explicit_arithmetic_types_int16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_KHR_shader_subgroup_ballot : require

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 64;

layout(set = 0, binding = 0, std430) readonly buffer StepValues { uint step_values[]; };

// A push constant is a number below 2^31, or names a word of the step's values.
uint extent(uint word) { return (word & 0x80000000u) != 0u ? step_values[word & 0x7fffffffu] : word; }
