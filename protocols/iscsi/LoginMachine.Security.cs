using System.Buffers;
using System.Globalization;

namespace BlockServer.Protocols.Iscsi;

/// <content>The security stage: AuthMethod and CHAP.</content>
public sealed partial class LoginMachine
{
    private const int ChallengeBytes = 32;

    private enum ChapStep
    {
        Method,
        Algorithm,
        Response,
        Done,
    }

    private ChapStep _step = ChapStep.Method;
    private ChapAlgorithm _algorithm;
    private byte _identifier;
    private byte[] _challenge = [];

    /// <summary>Answers the keys of one security round; <see cref="LoginVerdict.Agreed"/> means: no refusal, the caller
    /// writes the response.</summary>
    private LoginVerdict NegotiateSecurity(IBufferWriter<byte> output)
    {
        string? method = null, algorithms = null, name = null, response = null, identifier = null, challenge = null;
        foreach ((string key, string value) in _pairs)
        {
            switch (key)
            {
                case "AuthMethod": method = value; break;
                case "CHAP_A": algorithms = value; break;
                case "CHAP_N": name = value; break;
                case "CHAP_R": response = value; break;
                case "CHAP_I": identifier = value; break;
                case "CHAP_C": challenge = value; break;
                default:
                    if (IsName(key) || key.StartsWith("X#", StringComparison.Ordinal)) break;
                    var nobody = new IscsiParameters();
                    if (OperationalKeys.Take(key, value, options, nobody, false, true, out _) != KeyVerdict.Unknown)
                        return Refuse(IscsiLoginStatus.InitiatorError, "an operational key in the security stage", output);
                    IscsiText.Write(_answer, key, "NotUnderstood");
                    break;
            }
        }

        bool hasChapKeys = (algorithms ?? name ?? response ?? identifier ?? challenge) is not null;
        if (method is not null)
        {
            if (_step != ChapStep.Method || hasChapKeys) return OutOfOrder(output);
            return ChooseMethod(method, output);
        }

        if (algorithms is not null)
        {
            if (_step != ChapStep.Algorithm || (name ?? response ?? identifier ?? challenge) is not null) return OutOfOrder(output);
            return ChooseAlgorithm(algorithms, output);
        }

        if (hasChapKeys)
        {
            bool isComplete = name is not null && response is not null && (identifier is null) == (challenge is null);
            if (_step != ChapStep.Response || !isComplete) return OutOfOrder(output);
            return Prove(name!, response!, identifier, challenge, output);
        }

        // Without a method: fine where nobody asks for one, and otherwise only as a first word.
        if (_step == ChapStep.Method && Authentication is null) _isAuthenticated = true;
        if (_now.IsTransit && !_isAuthenticated)
            return Refuse(IscsiLoginStatus.AuthenticationFailure, "authentication was skipped", output);
        return LoginVerdict.Agreed;
    }

    private LoginVerdict ChooseMethod(string list, IBufferWriter<byte> output)
    {
        string wanted = Authentication is null ? "None" : "CHAP";
        if (!list.Split(',').Contains(wanted))
            return Refuse(IscsiLoginStatus.AuthenticationFailure, $"the initiator does not offer {wanted}", output);
        IscsiText.Write(_answer, "AuthMethod", wanted);
        _isAuthenticated = Authentication is null;
        _step = _isAuthenticated ? ChapStep.Done : ChapStep.Algorithm;
        return LoginVerdict.Agreed;
    }

    private LoginVerdict ChooseAlgorithm(string list, IBufferWriter<byte> output)
    {
        _algorithm = 0;
        string[] offered = list.Split(',');
        foreach (ChapAlgorithm algorithm in Chap.Preference)
        {
            bool isOurs = Authentication!.Algorithms.Contains(algorithm) && Chap.IsSupported(algorithm);
            if (!isOurs || !offered.Contains(((int)algorithm).ToString(CultureInfo.InvariantCulture))) continue;
            _algorithm = algorithm;
            break;
        }

        if (_algorithm == 0) return Refuse(IscsiLoginStatus.AuthenticationFailure, "no CHAP algorithm in common", output);
        _challenge = new byte[ChallengeBytes];
        random.Fill(_challenge);
        _identifier = (byte)random.NextUInt64();
        IscsiText.Write(_answer, "CHAP_A", ((int)_algorithm).ToString(CultureInfo.InvariantCulture));
        IscsiText.Write(_answer, "CHAP_I", _identifier.ToString(CultureInfo.InvariantCulture));
        IscsiText.Write(_answer, "CHAP_C", Chap.Text(_challenge));
        _step = ChapStep.Response;
        return LoginVerdict.Agreed;
    }

    private LoginVerdict Prove(string name, string response, string? identifier, string? challenge, IBufferWriter<byte> output)
    {
        IscsiAuthentication known = Authentication!;
        byte[]? secret = known.SecretOf(name);

        // An unknown user costs what a wrong secret costs, and is answered alike.
        byte[] expected = Chap.Respond(_algorithm, _identifier, secret ?? _challenge, _challenge);
        byte[] given = Chap.TryRead(response) ?? [];
        bool isRight = Chap.IsEqual(expected, given) && secret is not null;
        byte[]? theirs = challenge is null ? null : Chap.TryRead(challenge);
        if (theirs is not null && Chap.IsEqual(theirs, _challenge))
        {
            Fault = "our challenge came back";
            return LoginVerdict.Close;
        }

        if (!isRight)
        {
            Refuse(IscsiLoginStatus.AuthenticationFailure, "wrong CHAP name or secret", output);
            return LoginVerdict.RefusedForCredentials;
        }

        if (challenge is not null)
        {
            int number = 0;
            bool isReadable = theirs is not null && OperationalKeys.Number(identifier!, 0, 255, out number);
            if (!isReadable || known.MutualSecret is null)
                return Refuse(IscsiLoginStatus.AuthenticationFailure, "mutual CHAP is malformed or not configured", output);
            IscsiText.Write(_answer, "CHAP_N", known.MutualName!);
            IscsiText.Write(_answer, "CHAP_R", Chap.Text(Chap.Respond(_algorithm, (byte)number, known.MutualSecret, theirs)));
        }

        User = name;
        _isAuthenticated = true;
        _step = ChapStep.Done;
        return LoginVerdict.Agreed;
    }

    private LoginVerdict OutOfOrder(IBufferWriter<byte> output) =>
        Refuse(IscsiLoginStatus.AuthenticationFailure, "security keys out of order", output);
}
