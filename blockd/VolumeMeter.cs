using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Protocols.Nbd;

namespace BlockServer.Blockd;

/// <summary>Counters of one volume. Lives on the volume's loop: written and read there only.</summary>
internal sealed class VolumeMeter : INbdMeter, IUnitMeter
{
    /// <summary>Front ends, as <see cref="FrontEnd"/> numbers them.</summary>
    public const int Nbd = 0, Iscsi = 1;

    private readonly ulong[] _readHistogram = new ulong[LatencyBuckets.Count];
    private readonly ulong[] _writeHistogram = new ulong[LatencyBuckets.Count];
    private readonly Waits _readWaits = new();
    private readonly Waits _writeWaits = new();
    private ulong _readOps, _readBytes, _readNanos, _writeOps, _writeBytes, _writeNanos, _flushOps, _trimOps, _errors;
    private readonly ulong[] _frontOps = new ulong[2];
    private readonly ulong[] _frontBytes = new ulong[2];
    private readonly ulong[] _frontErrors = new ulong[2];
    private ulong _taskSetFull;

    /// <inheritdoc/>
    public void OnRequest(NbdCommand command, ulong bytes, ulong durationNanos, ulong queuedNanos, NbdError error) =>
        Count(Nbd, command, bytes, durationNanos, queuedNanos, error != NbdError.None);

    private void Count(int protocol, NbdCommand command, ulong bytes, ulong durationNanos, ulong queuedNanos, bool hasFailed)
    {
        _frontOps[protocol]++;
        if (hasFailed)
        {
            _errors++;
            _frontErrors[protocol]++;
        }
        else if (command is NbdCommand.Read or NbdCommand.Write)
        {
            _frontBytes[protocol] += bytes;
        }

        switch (command)
        {
            case NbdCommand.Read:
                _readOps++;
                _readBytes += bytes;
                _readNanos += durationNanos;
                _readHistogram[LatencyBuckets.Of(durationNanos)]++;
                if (queuedNanos != 0) _readWaits.Count(durationNanos, queuedNanos);
                break;
            case NbdCommand.Write:
                _writeOps++;
                _writeBytes += bytes;
                _writeNanos += durationNanos;
                _writeHistogram[LatencyBuckets.Of(durationNanos)]++;
                if (queuedNanos != 0) _writeWaits.Count(durationNanos, queuedNanos);
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
    public void OnCommand(byte operationCode, ulong bytes, ulong durationNanos, ulong queuedNanos, bool hasFailed) => Count(
        Iscsi,
        operationCode switch
        {
            0x08 or 0x28 or 0x88 or 0xA8 => NbdCommand.Read, // READ (6), (10), (16), (12)
            0x0A or 0x2A or 0x8A or 0xAA or 0x2E or 0x8E or 0xAE => NbdCommand.Write, // WRITE and WRITE AND VERIFY
            0x35 or 0x91 => NbdCommand.Flush, // SYNCHRONIZE CACHE
            0x41 or 0x42 or 0x93 => NbdCommand.Trim, // WRITE SAME (10), UNMAP, WRITE SAME (16)
            _ => NbdCommand.Cache,
        },
        bytes, durationNanos, queuedNanos, hasFailed);

    /// <summary>What one front end did. Any thread; a count that is written meanwhile is read before or after.</summary>
    public FrontEndFigures FrontEnd(int protocol) => new(_frontOps[protocol], _frontBytes[protocol], _frontErrors[protocol]);

    /// <summary>A command was turned away for want of memory or of room at its volume's door.</summary>
    public void OnTaskSetFull() => _taskSetFull++;

    /// <summary>The counters as the API gives them.</summary>
    public VolumeStats ToStats(string volume) => new(
        volume, _readOps, _readBytes, _writeOps, _writeBytes, _flushOps, _trimOps, _errors, _readNanos, _writeNanos,
        [.. _readHistogram], [.. _writeHistogram], _readWaits.Nanos, _writeWaits.Nanos);

    /// <summary>The counters with what /metrics shows besides.</summary>
    public MeterFigures ToFigures(string volume) => new(
        ToStats(volume), _readWaits.DeviceOf(_readHistogram), _writeWaits.DeviceOf(_writeHistogram), _readWaits.QueueOf(_readOps),
        _writeWaits.QueueOf(_writeOps), _taskSetFull);

    /// <summary>The requests that waited to be let in. Of all others the device had the whole time and the queue none, so those cost
    /// nothing here.</summary>
    private sealed class Waits
    {
        private readonly ulong[] _whole = new ulong[LatencyBuckets.Count];
        private readonly ulong[] _device = new ulong[LatencyBuckets.Count];
        private readonly ulong[] _queue = new ulong[LatencyBuckets.Count];
        private ulong _count;

        public ulong Nanos { get; private set; }

        public void Count(ulong durationNanos, ulong queuedNanos)
        {
            _count++;
            Nanos += queuedNanos;
            _whole[LatencyBuckets.Of(durationNanos)]++;
            _device[LatencyBuckets.Of(durationNanos - queuedNanos)]++;
            _queue[LatencyBuckets.Of(queuedNanos)]++;
        }

        public ulong[] DeviceOf(ulong[] all) => [.. all.Select((count, i) => count - _whole[i] + _device[i])];

        public ulong[] QueueOf(ulong operations)
        {
            ulong[] queue = [.. _queue];
            queue[0] += operations - _count;
            return queue;
        }
    }
}

/// <summary>What a meter has counted, copied on its loop.</summary>
/// <param name="Stats">As the API gives them.</param>
/// <param name="ReadDevice">Histogram of reads from their admission on.</param>
/// <param name="WriteDevice">Of writes.</param>
/// <param name="ReadQueue">Histogram of how long reads waited for it.</param>
/// <param name="WriteQueue">Of writes.</param>
/// <param name="TaskSetFull">Commands turned away.</param>
internal sealed record MeterFigures(
    VolumeStats Stats, ulong[] ReadDevice, ulong[] WriteDevice, ulong[] ReadQueue, ulong[] WriteQueue, ulong TaskSetFull);

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
    public void OnCommand(ulong lun, byte operationCode, ulong bytes, ulong durationNanos, ulong queuedNanos, bool hasFailed)
    {
        if (_meters.TryGetValue((ushort)((lun >> 48) & ScsiTarget.LunMax), out VolumeMeter? meter))
            meter.OnCommand(operationCode, bytes, durationNanos, queuedNanos, hasFailed);
    }

    /// <inheritdoc/>
    public void OnTaskSetFull(ulong lun)
    {
        if (_meters.TryGetValue((ushort)((lun >> 48) & ScsiTarget.LunMax), out VolumeMeter? meter)) meter.OnTaskSetFull();
    }
}

/// <summary>What a front end has done since the start.</summary>
internal readonly record struct FrontEndFigures(ulong Operations, ulong Bytes, ulong Errors);
