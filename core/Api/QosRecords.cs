namespace BlockServer.Core.Api;

// Limits of volumes and tenants, spoken by blockd and pfcli, and kept in the records of both. A volume's are set by
// CreateVolume.qos and ChangeVolume.qos and shown by VolumeInfo.qos.

/// <summary>How much a volume, or all volumes of a tenant together, may be asked for. Reads and writes count alike, whatever front
/// end they come by; a trim, a zeroing and a read ahead count as an operation, a flush as nothing.</summary>
/// <param name="Iops">Operations a second; 0: as many as come.</param>
/// <param name="BytesPerSecond">Bytes read and written a second; 0: as many as come.</param>
/// <param name="BurstSeconds">So many seconds' worth of both is saved up while less is asked for, and may be taken at once; 0: a tenth
/// of a second.</param>
public sealed record QosLimits(ulong Iops = 0, ulong BytesPerSecond = 0, uint BurstSeconds = 0)
{
    /// <summary>Largest number of operations a second that can be set.</summary>
    public const ulong IopsMax = 100_000_000;

    /// <summary>Smallest number of bytes a second that can be set: with less one request of 32 MiB would block for minutes.</summary>
    public const ulong BytesPerSecondMin = 64 << 10;

    /// <summary>Largest number of bytes a second that can be set.</summary>
    public const ulong BytesPerSecondMax = 1UL << 40;

    /// <summary>Longest burst, seconds.</summary>
    public const uint BurstSecondsMax = 3600;

    /// <summary>No limits.</summary>
    public static QosLimits None { get; } = new();

    /// <summary>Which field is wrong and why, or null.</summary>
    public (string Field, string Detail)? Fault()
    {
        if (Iops > IopsMax) return ("iops", $"iops is at most {IopsMax}; 0 sets no limit");
        if (BytesPerSecond > BytesPerSecondMax || (BytesPerSecond > 0 && BytesPerSecond < BytesPerSecondMin))
            return ("bytesPerSecond", $"bytesPerSecond is {BytesPerSecondMin} to {BytesPerSecondMax}; 0 sets no limit");
        return BurstSeconds > BurstSecondsMax ? ("burstSeconds", $"burstSeconds is at most {BurstSecondsMax}") : null;
    }
}
