using System.Numerics;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>Counters of one volume. Lives on the volume's loop: written and read there only.</summary>
internal sealed class VolumeMeter : INbdMeter
{
    private const int Buckets = 28;

    private readonly ulong[] _readHistogram = new ulong[Buckets];
    private readonly ulong[] _writeHistogram = new ulong[Buckets];
    private ulong _readOps, _readBytes, _readNanos, _writeOps, _writeBytes, _writeNanos, _flushOps, _trimOps, _errors;

    /// <inheritdoc/>
    public void OnRequest(NbdCommand command, ulong bytes, ulong durationNanos, NbdError error)
    {
        if (error != NbdError.None) _errors++;
        switch (command)
        {
            case NbdCommand.Read:
                _readOps++;
                _readBytes += bytes;
                _readNanos += durationNanos;
                _readHistogram[BucketOf(durationNanos)]++;
                break;
            case NbdCommand.Write:
                _writeOps++;
                _writeBytes += bytes;
                _writeNanos += durationNanos;
                _writeHistogram[BucketOf(durationNanos)]++;
                break;
            case NbdCommand.Flush:
                _flushOps++;
                break;
            case NbdCommand.Trim or NbdCommand.WriteZeroes:
                _trimOps++;
                break;
            default:
                break;
        }
    }

    /// <summary>A SCSI command was answered; as <see cref="IIscsiMeter.OnCommand"/>.</summary>
    public void OnCommand(byte operationCode, ulong bytes, ulong durationNanos, bool hasFailed) => OnRequest(
        operationCode switch
        {
            0x08 or 0x28 or 0x88 or 0xA8 => NbdCommand.Read, // READ (6), (10), (16), (12)
            0x0A or 0x2A or 0x8A or 0xAA or 0x2E or 0x8E or 0xAE => NbdCommand.Write, // WRITE and WRITE AND VERIFY
            0x35 or 0x91 => NbdCommand.Flush, // SYNCHRONIZE CACHE
            0x41 or 0x42 or 0x93 => NbdCommand.Trim, // WRITE SAME (10), UNMAP, WRITE SAME (16)
            _ => NbdCommand.Cache,
        },
        bytes, durationNanos, hasFailed ? NbdError.Io : NbdError.None);

    /// <summary>The counters as the API gives them.</summary>
    public VolumeStats ToStats(string volume) => new(
        volume, _readOps, _readBytes, _writeOps, _writeBytes, _flushOps, _trimOps, _errors, _readNanos, _writeNanos,
        [.. _readHistogram], [.. _writeHistogram]);

    // Bucket i: less than 2^i microseconds.
    private static int BucketOf(ulong nanos) =>
        Math.Min(Buckets - 1, 64 - BitOperations.LeadingZeroCount(nanos / 1000));
}

/// <summary>Counts the commands of a target's units, each for its volume. Lives on the target's loop.</summary>
internal sealed class LunMeter : IIscsiMeter
{
    private readonly Dictionary<ushort, VolumeMeter> _meters = [];

    /// <summary>The commands of a LUN are those of this volume from now on; null: of none.</summary>
    public void Set(ushort lun, VolumeMeter? meter)
    {
        if (meter is null) _meters.Remove(lun);
        else _meters[lun] = meter;
    }

    /// <inheritdoc/>
    public void OnCommand(ulong lun, byte operationCode, ulong bytes, ulong durationNanos, bool hasFailed)
    {
        if (_meters.TryGetValue((ushort)((lun >> 48) & ScsiTarget.LunMax), out VolumeMeter? meter))
            meter.OnCommand(operationCode, bytes, durationNanos, hasFailed);
    }
}
