// Numbers of the weight formats, for the preprocessor.
#define F32 0
#define F16 1
#define BF16 2
#define Q8_0 3
#define Q4_0 4
#define Q4_1 5
#define Q5_0 6
#define Q5_1 7
#define Q4_K 8
#define Q5_K 9
#define Q6_K 10
#define Q2_K 11
#define Q3_K 12
#define IQ4_NL 13
#define IQ4_XS 14
#define MXFP4 15
#define TERNARY 16
